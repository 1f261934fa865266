"""From a stored frame to a picture."""

from __future__ import annotations

from dashboard_panels import Panel, quantiles, rate

PANELS = [
    Panel(
        "Pictures",
        "ops",
        rate("aeic_cloud_decodes_total", "result"),
        "Decodes by result. `failed` frames are in quarantine.",
        alerts=("AeicFramesQuarantined",),
    ),
    Panel(
        "Pixels",
        "none",
        [("sum(rate(aeic_cloud_pixels_total[2m]))", "pixels a second")],
        "Pixels of finished pictures a second.",
    ),
    Panel(
        "Waiting",
        "none",
        [("sum by (stage) (aeic_cloud_waiting_frames)", "before {{stage}}")],
        "Frames that this worker holds, by the stage that they wait for.",
    ),
    Panel(
        "Wait before entropy decoding",
        "s",
        quantiles("aeic_cloud_queue_seconds"),
        "High if the workers cannot keep up.",
    ),
    Panel("Entropy decoding", "s", quantiles("aeic_cloud_entropy_seconds"), "One frame."),
    Panel(
        "Differences in the entropy model",
        "none",
        [
            ("sum by (instance) (aeic_cloud_entropy_mismatches_total)", "{{instance}}"),
            ("sum by (instance) (aeic_edge_entropy_mismatches_total)", "{{instance}}"),
        ],
        "Frames that a GPU decoded or encoded differently from the CPU, since the start. Should always be 0.",
        alerts=("AeicEntropyMismatch",),
    ),
    Panel(
        "Wait for the device",
        "s",
        quantiles("aeic_cloud_device_wait_seconds"),
        "High if the device is the bottleneck.",
    ),
    Panel("Synthesis of a batch", "s", quantiles("aeic_cloud_synthesis_seconds"), "One batch on the device."),
    Panel(
        "Batch",
        "none",
        [
            (
                "sum(rate(aeic_cloud_batch_pieces_sum[2m])) / sum(rate(aeic_cloud_batch_pieces_count[2m]))",
                "pictures or tiles",
            )
        ],
        "Mean number of pictures or tiles in a batch.",
    ),
    Panel(
        "Fill of a batch",
        "percentunit",
        quantiles("aeic_cloud_batch_fill_ratio"),
        "Pixels of a batch as a share of AEIC_CLOUD_MAX_BATCH_PIXELS.",
    ),
    Panel(
        "Batches halved, out of memory",
        "ops",
        [("sum(rate(aeic_cloud_batch_splits_total[2m]))", "halved")],
        "Batches that did not fit into the memory of the device.",
        alerts=("AeicOutOfMemory",),
    ),
    Panel(
        "Writing pictures",
        "s",
        quantiles("aeic_cloud_image_encode_seconds"),
        "Encoding a picture as PNG, WebP, JPEG or AVIF.",
    ),
    Panel(
        "Decoder processes lost",
        "ops",
        [("sum(rate(aeic_cloud_decoder_deaths_total[5m]))", "lost")],
        "Decoder processes that ended while they had a batch.",
        alerts=("AeicDecoderDies",),
    ),
    Panel(
        "Bundles in memory",
        "bytes",
        [("aeic_cloud_models_bytes", "{{instance}}")],
        "Limited by AEIC_CLOUD_MODEL_BYTES.",
    ),
    Panel(
        "GPU memory",
        "bytes",
        [("sum by (kind) (aeic_cloud_gpu_memory_bytes)", "{{kind}}")],
        "GPU memory that torch holds; 0 on a CPU.",
    ),
    Panel(
        "Synthesis by part, p95",
        "s",
        quantiles("aeic_cloud_synthesis_part_seconds", "part", only=(0.95,)),
        "Time of each part of the network. Empty with ONNX Runtime.",
        needs="torch",
    ),
]
