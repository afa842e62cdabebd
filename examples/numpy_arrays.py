"""
numpy arrays in a guest's memory: what numpy writes is what the guest reads, without a copy.

The guest multiplies matrices. It gives room in its memory, numpy fills it, and reads the product
where the guest has left it. Views outlive a memory that grows, and are gone with the last array.

    python examples/numpy_arrays.py

Needs ``pip install numpy``.
"""

import asyncio
import pathlib
from typing import Any

import numpy

import asyncwasm as aw

MODULE = pathlib.Path(__file__).resolve().parent / "modules" / "matrix.wasm"


def inside(guest: Any, *shape: int) -> tuple[Any, int]:
    """Return an array in the guest's memory, and its address there."""
    count = int(numpy.prod(shape))
    address = guest.alloc(count * 4)
    if not address:
        raise MemoryError("the guest has no room")
    # After `alloc`, which may have grown the memory. The dtype says how the guest sees it.
    flat = numpy.frombuffer(guest.memory.buffer, dtype="<f4", count=count, offset=address)
    return flat.reshape(shape), address


async def main() -> None:
    """Multiply two matrices, and compare with numpy."""
    _, instance = await aw.instantiate(MODULE)
    with instance:
        guest = instance.exports
        m, k, n = 300, 200, 400
        left, left_at = inside(guest, m, k)
        right, right_at = inside(guest, k, n)
        product, product_at = inside(guest, m, n)

        chance = numpy.random.default_rng(1)
        chance.random(out=left, dtype=numpy.float32)  # straight into the guest
        right[:] = chance.random(right.shape) - 0.5  # converted on the way

        await guest.multiply.call_async(left_at, right_at, product_at, m, k, n)
        agrees = numpy.allclose(product, left @ right, atol=1e-3)
        print(f"{m} x {n} numbers agree with numpy: {agrees}")

        before = guest.memory.byte_length
        guest.memory.grow(16)
        right *= 2  # taken before the memory grew, and still the guest's own
        await guest.multiply.call_async(left_at, right_at, product_at, m, k, n)
        agrees = numpy.allclose(product, left @ right, atol=1e-3)
        print(f"and after growing by {guest.memory.byte_length - before:,} bytes: {agrees}")

        kept = product[0].copy()
    print(f"a row that was copied out: {kept.nbytes} bytes, owned by numpy: {kept.flags.owndata}")


if __name__ == "__main__":
    asyncio.run(main())
