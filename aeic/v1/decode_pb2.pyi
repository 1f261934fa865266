from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DecodeManyRequest(_message.Message):
    __slots__ = ("tag", "bitstream", "format", "width", "timeout_ms")
    TAG_FIELD_NUMBER: _ClassVar[int]
    BITSTREAM_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    tag: int
    bitstream: bytes
    format: str
    width: int
    timeout_ms: int
    def __init__(self, tag: _Optional[int] = ..., bitstream: _Optional[bytes] = ..., format: _Optional[str] = ..., width: _Optional[int] = ..., timeout_ms: _Optional[int] = ...) -> None: ...

class DecodeManyResponse(_message.Message):
    __slots__ = ("tag", "picture", "failure")
    TAG_FIELD_NUMBER: _ClassVar[int]
    PICTURE_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    tag: int
    picture: DecodedPicture
    failure: DecodeFailure
    def __init__(self, tag: _Optional[int] = ..., picture: _Optional[_Union[DecodedPicture, _Mapping]] = ..., failure: _Optional[_Union[DecodeFailure, _Mapping]] = ...) -> None: ...

class DecodedPicture(_message.Message):
    __slots__ = ("image", "width", "height", "latents_digest")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    LATENTS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    image: bytes
    width: int
    height: int
    latents_digest: str
    def __init__(self, image: _Optional[bytes] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., latents_digest: _Optional[str] = ...) -> None: ...

class DecodeFailure(_message.Message):
    __slots__ = ("code", "reason", "retry_after_ms")
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    code: int
    reason: str
    retry_after_ms: int
    def __init__(self, code: _Optional[int] = ..., reason: _Optional[str] = ..., retry_after_ms: _Optional[int] = ...) -> None: ...
