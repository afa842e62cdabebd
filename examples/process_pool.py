"""
Modules in other processes: a module pickles, so a pool of processes can have it.

What travels is the wasm and the options, never native code: each process compiles for itself,
once, and then calls its guest synchronously, for it has no event loop to hold. The event loop
here waits for the answers. Threads do the same without the copies (guests run without the GIL);
processes are for when Python around the guest is what takes the time.
"""

import asyncio
import multiprocessing
import os
import pathlib
from concurrent.futures import ProcessPoolExecutor

import asyncwasm as aw

HERE = pathlib.Path(__file__).resolve().parent
PROCESSES = 2
TYPOS = ("lighthose", "kepper", "evning", "wintre", "missd", "ålandd")

# What each process of the pool keeps.
guest: aw.Instance
digest: str
dictionary: list[str]


def prepare(module: aw.Module, words: list[str]) -> None:
    """Make the guest of this process; called once, when it starts."""
    global guest, digest, dictionary
    guest, digest, dictionary = aw.Instance(module), module.digest, words


def nearest(typo: str) -> tuple[str, int, str]:
    """Return the word most like *typo*, and who found it: the process and its module."""
    exports = guest.exports
    distances = []
    for word in dictionary:
        exports.reset()
        arguments = []
        for text in (typo.encode(), word.encode()):
            address = exports.alloc(len(text))
            exports.memory.write(address, text)
            arguments += [address, len(text)]
        distances.append((exports.distance(*arguments), word))
    return min(distances)[1], os.getpid(), digest


async def main() -> None:
    """Correct all the typos at once."""
    module = await aw.compile(HERE / "modules" / "levenshtein.wasm")
    text = (HERE / "data" / "tides.txt").read_text(encoding="utf-8")
    words = sorted({word.strip(".,;:\"'()").lower() for word in text.split()})

    loop = asyncio.get_running_loop()
    # A fresh interpreter, not a fork: threads, and locks that they hold, do not survive forks.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(PROCESSES, spawn, prepare, (module, words)) as pool:
        answers = await asyncio.gather(
            *(loop.run_in_executor(pool, nearest, typo) for typo in TYPOS)
        )

    for typo, (word, _, _) in zip(TYPOS, answers, strict=True):
        print(f"{typo}: {word}")
    processes = {process for _, process, _ in answers}
    print("found in other processes:", os.getpid() not in processes)
    print("with the module from here:", {each for *_, each in answers} == {module.digest})


if __name__ == "__main__":
    asyncio.run(main())
