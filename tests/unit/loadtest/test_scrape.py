"""Scraping while a load runs: whole pages, and of them only what is asked for."""

from aiohttp import web
from aiohttp.test_utils import TestServer

from daemons.loadtest.measure.scrape import Scraper, Source, histogram_delta, parse_metrics


async def test_a_page_that_comes_in_many_pieces_is_read_to_its_end() -> None:
    page = "# a comment\n" * 200_000 + "vllm:num_requests_waiting 12345\n"

    async def answer(_: web.Request) -> web.Response:
        return web.Response(text=page)

    app = web.Application()
    app.router.add_get("/metrics", answer)
    async with TestServer(app) as server:
        scraper = Scraper([Source("engine", str(server.make_url("/metrics")))])
        await scraper.last()
    assert scraper.problems == {}
    assert [snapshot.total("vllm:num_requests_waiting") for snapshot in scraper.snapshots] == [12345]


def test_only_what_is_asked_for_is_kept() -> None:
    page = (
        'vllm:request_queue_time_seconds_bucket{le="+Inf"} 1\n'
        "vllm:request_queue_time_seconds_created 5\n"
        'vllm:iteration_tokens_total_bucket{le="1"} 1\n'
        "vllm:prefix_cache_queries_total 1\n"
        "vllm:prefix_cache_queries_created 5\n"
    )
    assert {name for name, _ in parse_metrics(page)} == {
        "vllm:request_queue_time_seconds_bucket",
        "vllm:prefix_cache_queries_total",
    }


def _histogram(low: int, every: int, engine: int = 0) -> str:
    return "".join(
        f'vllm:request_queue_time_seconds_bucket{{engine="{engine}",le="{bound}"}} {count}\n'
        for bound, count in (("1", low), ("+Inf", every))
    )


def test_a_restart_is_one_of_the_whole_series_and_of_no_other() -> None:
    """Fewer slow ones than before show that the fast ones, more than before, were counted anew as well."""
    total = 'vllm:request_queue_time_seconds_sum{{engine="{}"}} {}\n'
    sums = [total.format(0, 7) + total.format(1, 20), total.format(0, 9) + total.format(1, 30)]
    first = parse_metrics(_histogram(5, 100) + _histogram(5, 100, engine=1) + sums[0])
    last = parse_metrics(_histogram(50, 60) + _histogram(7, 110, engine=1) + sums[1])
    delta = histogram_delta(first, last, "vllm:request_queue_time_seconds")
    assert delta == ([(1.0, 50.0 + 2.0), (float("inf"), 60.0 + 10.0)], 9.0 + (30.0 - 20.0))
