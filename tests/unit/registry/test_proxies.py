from __future__ import annotations

import pytest

from zeropull.registry.proxies import proxy_of

PROXIES = {"HTTPS_PROXY": "http://tls.proxy:3128", "http_proxy": "plain.proxy:3128"}


@pytest.mark.parametrize(
    ("url", "no_proxy", "proxy"),
    [
        ("https://r.example/v2/", "", "http://tls.proxy:3128"),
        ("http://r.example/v2/", "", "http://plain.proxy:3128"),
        ("https://r.example/v2/", "*", None),
        ("https://r.example/v2/", "example", None),
        ("https://r.example/v2/", "other, .example", None),
        ("https://example/v2/", ".example", "http://tls.proxy:3128"),
        ("https://bad-r.example/v2/", "r.example", "http://tls.proxy:3128"),
        ("https://r.example/v2/", "r.example:5000", "http://tls.proxy:3128"),
        ("https://r.example:5000/v2/", "r.example:5000", None),
        ("https://10.1.2.3/v2/", "10.0.0.0/8", None),
        ("https://10.1.2.3/v2/", "10.1.2.3", None),
        ("https://127.0.0.1:5000/v2/", "", None),
        ("https://localhost/v2/", "", None),
    ],
)
def test_proxies_are_chosen_as_go_chooses_them(url: str, no_proxy: str, proxy: str | None) -> None:
    assert proxy_of(url, PROXIES | {"NO_PROXY": no_proxy}) == proxy
    assert proxy_of(url, {}) is None
