"""
Quick start: load wasm from disk, call it, await it, cancel it.

Shows the four things one does with a guest: a synchronous call for work that is short, with
a Python function that the guest calls back; an awaited call for work that is long, during
which the event loop runs on; and a timeout, which ends even a guest that never returns.
"""

import asyncio
import collections
import pathlib

import asyncwasm as aw

HERE = pathlib.Path(__file__).resolve().parent


async def count_words() -> None:
    """Call a guest synchronously; it calls back for every word it finds."""
    counter: collections.Counter[bytes] = collections.Counter()

    def on_word(address: int, size: int) -> None:
        counter[guest.memory.read(address, size).lower()] += 1

    path = HERE / "modules" / "text.wasm"
    _, instance = await aw.instantiate(path, {"env": {"word": on_word}})
    guest = instance.exports

    text = (HERE / "data" / "tides.txt").read_bytes()
    address = guest.alloc(len(text))
    guest.memory.write(address, text)
    total = guest.words(address, len(text))
    word, times = counter.most_common(1)[0]
    print(f"{total} words, {times} of them {word.decode()!r}")

    title = text.splitlines()[0]
    slug = guest.alloc(len(title))
    print(guest.memory.read(slug, guest.slugify(address, len(title), slug)).decode())


async def draw() -> None:
    """Await a guest that computes for a while; the event loop has time for others."""
    _, instance = await aw.instantiate(HERE / "modules" / "mandelbrot.wasm")
    guest = instance.exports

    picture = guest.render(60, 18, 30)
    for row in range(18):
        print(guest.memory.read(picture + 60 * row, 60).decode().rstrip())

    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.005)
            ticks += 1

    ticking = asyncio.create_task(tick())
    await guest.render.call_async(256, 256, 3000)
    print("the loop ticked while the guest computed:", ticks > 1)
    ticking.cancel()


async def cancel() -> None:
    """Stop a guest that never returns; its instance can still be used."""
    wasm = aw.wat2wasm((HERE / "modules" / "numbers.wat").read_text(encoding="utf-8"))
    _, instance = await aw.instantiate(wasm)
    try:
        async with asyncio.timeout(0.1):
            await instance.exports.spin.call_async()
    except TimeoutError:
        print("the spinning guest was stopped")
    print("2 + 3 =", instance.exports.add(2, 3))


async def main() -> None:
    """Run the three parts in turn."""
    await count_words()
    await draw()
    await cancel()


if __name__ == "__main__":
    asyncio.run(main())
