"""What a worker that goes says, as the one that serves hears it."""

import asyncio
from pathlib import Path

from daemons.gateway.succession import Succession, Word


async def test_a_word_given_up_before_it_was_said_is_none(tmp_path: Path) -> None:
    serving = Succession(tmp_path / "succession", predecessor=True)
    words: list[Word] = []
    await serving.listen(words.append)
    reader, writer = await asyncio.open_unix_connection(tmp_path / "succession")
    writer.write_eof()
    await reader.read()
    writer.close()
    told = asyncio.create_task(serving.predecessor_told())
    await asyncio.sleep(0)
    assert not told.done()
    word = Word(worker="1", number=1, last=True, sections={})
    await Succession(tmp_path / "succession", predecessor=False).tell(word)
    await told
    assert words == [word]
    serving.stop_listening()
