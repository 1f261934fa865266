"""The stores of both kinds, as the cloud's tests have them."""

from tests.cloud.conftest import postgres, store_url

__all__ = ["postgres", "store_url"]
