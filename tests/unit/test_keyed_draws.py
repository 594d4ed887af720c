"""The keyed draws are a public contract: golden vectors, and a second implementation of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from draftless.engine.sampling import lowest_argmax
from draftless.noise import (
    KeyedNoise,
    hash_ids,
    mix64,
    token_keys,
    uniform,
    uniform_on_device,
)

# (seed, sample index, position): noise of the ids 0, 1, 1000 and 151935.
GOLDEN: dict[tuple[int, int, int], list[float]] = {
    (0, 0, 0): [2.0868436769674386, 0.17385007634518215, -0.5533216969868988, 3.830487841807854],
    (0, 0, 1): [1.244732970918658, 0.012270581425354594, 1.1602308726611998, 1.415118461775055],
    (0, 1, 0): [-0.3097074924693075, -0.8865508641733083, 2.136500263414293, -0.3154230762297239],
    (1, 0, 0): [
        -0.8244951608675533,
        -0.2873877183353341,
        -0.024727222929126325,
        -0.7844528294087424,
    ],
    (42, 0, 17): [
        1.1559278767205259,
        0.5540441163727227,
        0.055967183196069185,
        0.37685736294601685,
    ],
    (-1, 3, 4095): [
        -0.9339646342609268,
        2.8976913846587222,
        -0.0743969168819535,
        1.9134945023040235,
    ],
    (9223372036854775808, 0, 131072): [
        1.0140092424424203,
        0.6393327515804345,
        2.0911956595333043,
        2.224111638776499,
    ],
}

MASK = 2**64 - 1


def mix(value: int) -> int:
    """SplitMix64's output function, as its paper prints it."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & MASK
    return value ^ (value >> 31)


def gumbel(seed: int, sample: int, position: int, token_id: int) -> float:
    """The contract in the docstring of `draftless.noise`, in Python's integers."""
    stream = mix((mix((mix(seed & MASK) + sample) & MASK) + position) & MASK)
    bits = mix((stream + (token_id + 1) * 0x9E3779B97F4A7C15) & MASK)
    return -math.log(-math.log(((bits >> 12) + 0.5) / 2**52))


IDS = [0, 1, 1000, 151_935]


@pytest.mark.parametrize("key", GOLDEN)
def test_golden_vectors(key: tuple[int, int, int]) -> None:
    seed, sample, position = key
    noise = KeyedNoise(seed, sample)(position, torch.tensor(IDS))
    assert noise.tolist() == pytest.approx(GOLDEN[key], rel=1e-13)


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63, 2**64 - 1, 2**70 + 3, 123_456_789])
@pytest.mark.parametrize(("sample", "position"), [(0, 0), (0, 1), (1, 0), (3, 100_000)])
def test_the_contract_in_pure_python(seed: int, sample: int, position: int) -> None:
    noise = KeyedNoise(seed, sample)(position, torch.arange(300))
    wanted = [gumbel(seed, sample, position, token_id) for token_id in range(300)]
    assert noise.tolist() == pytest.approx(wanted, rel=1e-13)


@pytest.mark.parametrize("seed", [0, -1, 2**63, 123_456_789])
def test_an_accelerator_computes_the_same(seed: int) -> None:
    """Its way, in torch's signed integers, on a CPU: numpy's numbers, bit for bit up to the logarithm,
    whose last bit is the library's own."""
    keyed = KeyedNoise(seed, 3)
    ids = torch.arange(5000).view(2, -1)
    bits = token_keys(ids.numpy()) + np.uint64(keyed.stream(7))
    numbers = uniform_on_device(torch.from_numpy(bits.view(np.int64)))
    assert numbers.equal(torch.from_numpy(uniform(bits)))
    for position in (7, (7, 2**31)):
        ours, theirs = keyed(position, ids), keyed._on_device(position, ids)
        torch.testing.assert_close(theirs, ours, rtol=2**-50, atol=2**-50)


def test_splitmix_against_its_published_first_outputs() -> None:
    """The first outputs of the generator with seed 1234567 (Rosetta Code, `SplitMix64`)."""
    golden = 0x9E3779B97F4A7C15
    outputs = [mix64(1234567 + n * golden) for n in range(1, 4)]
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_noise_does_not_depend_on_company() -> None:
    """Bit for bit: alone, in a subset, in any shape, stride or order, in a larger vocabulary."""
    keyed = KeyedNoise(11, 2)
    whole = keyed(5, torch.arange(1009))
    ids = torch.tensor([[7, 1000, 7], [0, 3, 512]])
    assert keyed(5, ids).equal(whole[ids])
    assert keyed(5, ids.T).equal(whole[ids.T])
    assert keyed(5, torch.tensor(1000)).equal(whole[1000])
    assert keyed(5, torch.arange(4001))[:1009].equal(whole)
    singles = torch.stack([keyed(5, torch.tensor([i])) for i in range(64)])[:, 0]
    assert singles.equal(whole[:64])
    assert whole.dtype == torch.float64


def test_noise_does_not_depend_on_global_state_or_order() -> None:
    torch.manual_seed(1)
    first = KeyedNoise(3)(9, torch.arange(10))
    torch.manual_seed(2)
    KeyedNoise(3)(8, torch.arange(10))
    state = torch.get_rng_state()
    assert KeyedNoise(3)(9, torch.arange(10)).equal(first)
    assert torch.get_rng_state().equal(state), "nor does it touch that state"


@pytest.mark.parametrize("change", [{"seed": 4}, {"sample_index": 1}, {"position": 10}])
def test_every_part_of_the_key_counts(change: dict[str, int]) -> None:
    key = {"seed": 3, "sample_index": 0, "position": 9}
    ids = torch.arange(50)

    def noise(seed: int, sample_index: int, position: int) -> torch.Tensor:
        return KeyedNoise(seed, sample_index)(position, ids)

    assert (noise(**key) != noise(**{**key, **change})).all()


def test_noise_is_finite_at_the_ends() -> None:
    """The uniform is clamped away from 0 and 1 by construction."""
    for bits in (0, 2**52 - 1):
        assert math.isfinite(-math.log(-math.log((bits + 0.5) / 2**52)))


def test_ties_go_to_the_lowest_id() -> None:
    assert lowest_argmax(torch.tensor([1.0, 5.0, 2.0, 5.0])) == 1
    assert lowest_argmax(torch.full((3000,), 2.0)) == 0
    assert lowest_argmax(torch.tensor([-torch.inf, 0.0, -torch.inf])) == 1


def test_hash_ids_depends_on_every_argument() -> None:
    values = [
        hash_ids(1, 2, ids=[3, 4]), hash_ids(2, 2, ids=[3, 4]), hash_ids(1, 3, ids=[3, 4]),
        hash_ids(1, 2, ids=[4, 3]), hash_ids(1, 2, ids=[3]), hash_ids(1, ids=[3, 4]),
    ]  # fmt: skip
    assert len(set(values)) == len(values)
    assert hash_ids(1, 2, ids=[3, 4]) == values[0]
