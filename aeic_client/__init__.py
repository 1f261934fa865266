"""A client of the cloud: frames and pictures, asked for or followed as they arrive. Needs httpx (extra ``client``).

>>> from aeic_client import Client                                    # doctest: +SKIP
>>> with Client("http://127.0.0.1:8081") as cloud:                    # doctest: +SKIP
...     for frame, picture in cloud.pictures(format="webp"):
...         print(frame.source, frame.bytes, len(picture))
"""

from aeic_client.aio import AsyncClient
from aeic_client.client import Client
from aeic_client.messages import Event, Frame, NotReady, Problem, Request, Source

__all__ = ["AsyncClient", "Client", "Event", "Frame", "NotReady", "Problem", "Request", "Source"]
