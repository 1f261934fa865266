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
ACK_STATUS_UNSPECIFIED: AckStatus
ACK_STATUS_STORED: AckStatus
ACK_STATUS_DUPLICATE: AckStatus
ACK_STATUS_REJECTED: AckStatus

class DeliverRequest(_message.Message):
    __slots__ = ("hello", "frame")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    frame: Frame
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., frame: _Optional[_Union[Frame, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("source_id", "bundle_digest", "software", "token", "window", "process_id")
    SOURCE_ID_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    PROCESS_ID_FIELD_NUMBER: _ClassVar[int]
    source_id: str
    bundle_digest: bytes
    software: str
    token: str
    window: int
    process_id: bytes
    def __init__(self, source_id: _Optional[str] = ..., bundle_digest: _Optional[bytes] = ..., software: _Optional[str] = ..., token: _Optional[str] = ..., window: _Optional[int] = ..., process_id: _Optional[bytes] = ...) -> None: ...

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
    __slots__ = ("welcome", "ack", "stored")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    STORED_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    ack: Ack
    stored: int
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., ack: _Optional[_Union[Ack, _Mapping]] = ..., stored: _Optional[int] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("window",)
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    window: int
    def __init__(self, window: _Optional[int] = ...) -> None: ...

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
