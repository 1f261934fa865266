from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CaptureTimeSource(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CAPTURE_TIME_SOURCE_UNSPECIFIED: _ClassVar[CaptureTimeSource]
    CAPTURE_TIME_SOURCE_SENDER: _ClassVar[CaptureTimeSource]
    CAPTURE_TIME_SOURCE_EXIF: _ClassVar[CaptureTimeSource]
    CAPTURE_TIME_SOURCE_FILE: _ClassVar[CaptureTimeSource]
    CAPTURE_TIME_SOURCE_CLOCK: _ClassVar[CaptureTimeSource]

class RequestKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REQUEST_KIND_UNSPECIFIED: _ClassVar[RequestKind]
    REQUEST_KIND_BETTER: _ClassVar[RequestKind]
    REQUEST_KIND_REGION: _ClassVar[RequestKind]
    REQUEST_KIND_ORIGINAL: _ClassVar[RequestKind]
    REQUEST_KIND_NOW: _ClassVar[RequestKind]

class RefusalReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REFUSAL_REASON_UNSPECIFIED: _ClassVar[RefusalReason]
    REFUSAL_REASON_GONE: _ClassVar[RefusalReason]
    REFUSAL_REASON_FORBIDDEN: _ClassVar[RefusalReason]
    REFUSAL_REASON_OVER_BUDGET: _ClassVar[RefusalReason]
    REFUSAL_REASON_EXPIRED: _ClassVar[RefusalReason]
    REFUSAL_REASON_UNSUPPORTED: _ClassVar[RefusalReason]

class AckStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ACK_STATUS_UNSPECIFIED: _ClassVar[AckStatus]
    ACK_STATUS_STORED: _ClassVar[AckStatus]
    ACK_STATUS_DUPLICATE: _ClassVar[AckStatus]
    ACK_STATUS_REJECTED: _ClassVar[AckStatus]
CAPTURE_TIME_SOURCE_UNSPECIFIED: CaptureTimeSource
CAPTURE_TIME_SOURCE_SENDER: CaptureTimeSource
CAPTURE_TIME_SOURCE_EXIF: CaptureTimeSource
CAPTURE_TIME_SOURCE_FILE: CaptureTimeSource
CAPTURE_TIME_SOURCE_CLOCK: CaptureTimeSource
REQUEST_KIND_UNSPECIFIED: RequestKind
REQUEST_KIND_BETTER: RequestKind
REQUEST_KIND_REGION: RequestKind
REQUEST_KIND_ORIGINAL: RequestKind
REQUEST_KIND_NOW: RequestKind
REFUSAL_REASON_UNSPECIFIED: RefusalReason
REFUSAL_REASON_GONE: RefusalReason
REFUSAL_REASON_FORBIDDEN: RefusalReason
REFUSAL_REASON_OVER_BUDGET: RefusalReason
REFUSAL_REASON_EXPIRED: RefusalReason
REFUSAL_REASON_UNSUPPORTED: RefusalReason
ACK_STATUS_UNSPECIFIED: AckStatus
ACK_STATUS_STORED: AckStatus
ACK_STATUS_DUPLICATE: AckStatus
ACK_STATUS_REJECTED: AckStatus

class DeliverRequest(_message.Message):
    __slots__ = ("hello", "frame", "refusal", "piece", "report")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    PIECE_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    frame: Frame
    refusal: Refusal
    piece: Piece
    report: Report
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., frame: _Optional[_Union[Frame, _Mapping]] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ..., piece: _Optional[_Union[Piece, _Mapping]] = ..., report: _Optional[_Union[Report, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("source_id", "bundle_digest", "software", "token", "window", "process_id", "request_max_bytes", "original_max_bytes")
    SOURCE_ID_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    PROCESS_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_MAX_BYTES_FIELD_NUMBER: _ClassVar[int]
    ORIGINAL_MAX_BYTES_FIELD_NUMBER: _ClassVar[int]
    source_id: str
    bundle_digest: bytes
    software: str
    token: str
    window: int
    process_id: bytes
    request_max_bytes: int
    original_max_bytes: int
    def __init__(self, source_id: _Optional[str] = ..., bundle_digest: _Optional[bytes] = ..., software: _Optional[str] = ..., token: _Optional[str] = ..., window: _Optional[int] = ..., process_id: _Optional[bytes] = ..., request_max_bytes: _Optional[int] = ..., original_max_bytes: _Optional[int] = ...) -> None: ...

class Frame(_message.Message):
    __slots__ = ("id", "bitstream", "crc32", "captured_unix_ms", "priority", "source_id", "prompt", "original_width", "original_height", "captured_from", "trace_context")
    ID_FIELD_NUMBER: _ClassVar[int]
    BITSTREAM_FIELD_NUMBER: _ClassVar[int]
    CRC32_FIELD_NUMBER: _ClassVar[int]
    CAPTURED_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    SOURCE_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    ORIGINAL_WIDTH_FIELD_NUMBER: _ClassVar[int]
    ORIGINAL_HEIGHT_FIELD_NUMBER: _ClassVar[int]
    CAPTURED_FROM_FIELD_NUMBER: _ClassVar[int]
    TRACE_CONTEXT_FIELD_NUMBER: _ClassVar[int]
    id: bytes
    bitstream: bytes
    crc32: int
    captured_unix_ms: int
    priority: int
    source_id: str
    prompt: bool
    original_width: int
    original_height: int
    captured_from: CaptureTimeSource
    trace_context: bytes
    def __init__(self, id: _Optional[bytes] = ..., bitstream: _Optional[bytes] = ..., crc32: _Optional[int] = ..., captured_unix_ms: _Optional[int] = ..., priority: _Optional[int] = ..., source_id: _Optional[str] = ..., prompt: _Optional[bool] = ..., original_width: _Optional[int] = ..., original_height: _Optional[int] = ..., captured_from: _Optional[_Union[CaptureTimeSource, str]] = ..., trace_context: _Optional[bytes] = ...) -> None: ...

class DeliverResponse(_message.Message):
    __slots__ = ("welcome", "ack", "stored", "request", "piece")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    STORED_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    PIECE_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    ack: Ack
    stored: int
    request: Request
    piece: PieceAck
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., ack: _Optional[_Union[Ack, _Mapping]] = ..., stored: _Optional[int] = ..., request: _Optional[_Union[Request, _Mapping]] = ..., piece: _Optional[_Union[PieceAck, _Mapping]] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("window", "sends_requests", "takes_originals", "takes_reports")
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    SENDS_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    TAKES_ORIGINALS_FIELD_NUMBER: _ClassVar[int]
    TAKES_REPORTS_FIELD_NUMBER: _ClassVar[int]
    window: int
    sends_requests: bool
    takes_originals: bool
    takes_reports: bool
    def __init__(self, window: _Optional[int] = ..., sends_requests: _Optional[bool] = ..., takes_originals: _Optional[bool] = ..., takes_reports: _Optional[bool] = ...) -> None: ...

class Report(_message.Message):
    __slots__ = ("waiting_frames", "oldest_seconds", "problem")
    WAITING_FRAMES_FIELD_NUMBER: _ClassVar[int]
    OLDEST_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    waiting_frames: int
    oldest_seconds: int
    problem: str
    def __init__(self, waiting_frames: _Optional[int] = ..., oldest_seconds: _Optional[int] = ..., problem: _Optional[str] = ...) -> None: ...

class Request(_message.Message):
    __slots__ = ("id", "frame_id", "kind", "x", "y", "width", "height", "max_bytes", "expires_in_ms", "source_id")
    ID_FIELD_NUMBER: _ClassVar[int]
    FRAME_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    X_FIELD_NUMBER: _ClassVar[int]
    Y_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    MAX_BYTES_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_IN_MS_FIELD_NUMBER: _ClassVar[int]
    SOURCE_ID_FIELD_NUMBER: _ClassVar[int]
    id: bytes
    frame_id: bytes
    kind: RequestKind
    x: int
    y: int
    width: int
    height: int
    max_bytes: int
    expires_in_ms: int
    source_id: str
    def __init__(self, id: _Optional[bytes] = ..., frame_id: _Optional[bytes] = ..., kind: _Optional[_Union[RequestKind, str]] = ..., x: _Optional[int] = ..., y: _Optional[int] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., max_bytes: _Optional[int] = ..., expires_in_ms: _Optional[int] = ..., source_id: _Optional[str] = ...) -> None: ...

class Piece(_message.Message):
    __slots__ = ("request_id", "total_bytes", "sha256", "offset", "data")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    request_id: bytes
    total_bytes: int
    sha256: bytes
    offset: int
    data: bytes
    def __init__(self, request_id: _Optional[bytes] = ..., total_bytes: _Optional[int] = ..., sha256: _Optional[bytes] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class PieceAck(_message.Message):
    __slots__ = ("request_id", "received_bytes", "unwanted")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    UNWANTED_FIELD_NUMBER: _ClassVar[int]
    request_id: bytes
    received_bytes: int
    unwanted: bool
    def __init__(self, request_id: _Optional[bytes] = ..., received_bytes: _Optional[int] = ..., unwanted: _Optional[bool] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("request_id", "reason", "detail")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    request_id: bytes
    reason: RefusalReason
    detail: str
    def __init__(self, request_id: _Optional[bytes] = ..., reason: _Optional[_Union[RefusalReason, str]] = ..., detail: _Optional[str] = ...) -> None: ...

class Ack(_message.Message):
    __slots__ = ("id", "status", "reason")
    ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    id: bytes
    status: AckStatus
    reason: str
    def __init__(self, id: _Optional[bytes] = ..., status: _Optional[_Union[AckStatus, str]] = ..., reason: _Optional[str] = ...) -> None: ...

class DecodeRequest(_message.Message):
    __slots__ = ("bitstream", "format")
    BITSTREAM_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    bitstream: bytes
    format: str
    def __init__(self, bitstream: _Optional[bytes] = ..., format: _Optional[str] = ...) -> None: ...

class DecodeResponse(_message.Message):
    __slots__ = ("image", "width", "height")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    image: bytes
    width: int
    height: int
    def __init__(self, image: _Optional[bytes] = ..., width: _Optional[int] = ..., height: _Optional[int] = ...) -> None: ...
