"""MAGE against the published network's recorded outputs, and its training step."""

import pytest
import torch

from rcg.config import GuidanceConfig
from rcg.core.contracts import MASK, Space
from rcg.core.errors import UserError
from rcg.core.rng import SampleNoise
from rcg.diffusion.model import build
from rcg.diffusion.processes.masked import MaskDraws
from rcg.generators.mage import MAGEConfig
from rcg.nn import Attention, attend
from tests.models import TOKENS
from tests.models import mage as model
from tests.parity import recorded
from tests.recorded_mage import published

pytestmark = pytest.mark.usefixtures("toy_autoencoder")


def recorded_draws(tensors):
    return MaskDraws(tensors["aux/mask_rate"].expand(2), tensors["aux/mask_noise"].view(2, 16, 16))


def in_recorded_order(m, tensors, monkeypatch):
    """Let the encoder drop what the published one dropped: the tokens of lowest noise."""
    order = tensors["aux/mask_noise"].argsort(dim=1, descending=True)
    monkeypatch.setattr(m.network, "_order", lambda masked: order)
    monkeypatch.setattr(m.process, "draw", lambda x: recorded_draws(tensors))
    monkeypatch.setattr(m, "dropped", lambda cond: tensors["aux/rep_drop_rand"] < tensors["aux/rep_drop_prob"])
    return m.train()


def test_the_training_step_equals_the_published_one(monkeypatch):
    _, tensors = recorded("mage_train_forward")
    m = in_recorded_order(published(), tensors, monkeypatch)
    seen = {}
    m.network.norm.register_forward_hook(lambda module, args, out: seen.update(latent=out))
    m.network.register_forward_hook(lambda module, args, out: seen.update(x=args[0], logits=out))
    loss = m(tensors["in/gt_indices"].view(2, 16, 16), tensors["in/rep"])["cross_entropy"]
    assert torch.equal((seen["x"] == MASK).flatten(1).float(), tensors["out/token_all_mask"][:, 1:])
    latent, logits = seen["latent"], seen["logits"].flatten(3)[:, 0].transpose(1, 2)  # (B, N, K)
    assert_encoded(latent, m.network._order(None)[:, :128], tensors["out/latent"])
    assert_recorded(logits, tensors["out/logits"])
    torch.testing.assert_close(loss, tensors["out/loss"], atol=1e-5, rtol=1e-5)


def assert_encoded(latent, order, published):
    """Compare the slot and tokens in our order with published ones, which are in the order of the image."""
    latent = torch.cat([latent[:, :1], latent[:, 1:].take_along_dim(order.argsort(dim=1)[..., None], 1)], 1)
    torch.testing.assert_close(latent, published, atol=1e-5, rtol=1e-4)


def assert_recorded(logits, strided):
    """Compare `(B, 256, 48)` with every 18th number of the published `(B, 257, 1049)`."""
    place = torch.arange(0, 2 * 257 * 1049, 18)
    assert len(place) == len(strided)
    sample, token, word = place // (257 * 1049), place // 1049 % 257, place % 1049
    ours = (token > 0) & (word < 48)  # the others are never used
    assert ours.sum() > 1000
    found = logits[sample[ours], token[ours] - 1, word[ours]]
    torch.testing.assert_close(found, strided[ours], atol=1e-5, rtol=1e-4)


def test_a_decoding_step_equals_the_published_one():
    _, tensors = recorded("mage_decode_step")
    m = published().eval()
    tokens = tensors["in/tokens"]
    x = torch.where(tokens >= 48, MASK, tokens).view(2, 16, 16)
    assert 0 < (x == MASK).sum() < x.numel()
    seen = []
    m.network.norm.register_forward_hook(lambda module, args, out: seen.append(out))
    logits = m.network(x, torch.zeros(2), tensors["in/rep"])
    assert_encoded(seen[0], m.network._order((x == MASK).flatten(1)), tensors["out/encoder_out"])
    assert_recorded(logits.flatten(3)[:, 0].transpose(1, 2), tensors["out/logits"])


@pytest.mark.parametrize("cond", [None, Space((3,)), Space((), vocab=5)])
def test_every_condition_trains_every_weight_and_generates_tokens(cond):
    m = model(cond, dropout=0.0).train()
    x = torch.randint(12, (6, 4, 4))
    c = None
    if cond is not None:
        c = torch.randn(6, 3) if cond.vocab is None else torch.randint(5, (6,))
    m(x, c)["cross_entropy"].backward()
    still = {name for name, p in m.named_parameters() if p.grad is None or p.grad.abs().sum() == 0}
    assert not still - {"null"}  # the null is drawn for a tenth of the samples only
    guidance, sampler = GuidanceConfig(scale=2.0), m.config.sampler.with_steps(4)
    samples = m.eval().sample(c, SampleNoise(0, range(6), "t"), guidance=guidance, sampler=sampler)
    assert samples.shape == (6, 4, 4)
    assert samples.dtype == torch.int64
    assert 0 <= samples.min() <= samples.max() < 12


@pytest.mark.parametrize("trains", [True, False])
def test_the_output_shares_the_embeddings_and_trains_them_if_configured(trains):
    m = model(tie_embedding_grad=trains).eval()
    x = torch.full((2, 4, 4), MASK)
    m.network(x, torch.zeros(2)).square().sum().backward()
    assert (m.network.words.weight.grad[:12].abs().amax(1) > 0).tolist() == [trains] * 12
    assert m.network.words.weight.grad[12].abs().max() > 0
    with torch.no_grad():
        before = m.network(x, torch.zeros(2))
        m.network.words.weight[3] += 1
        changed = (m.network(x, torch.zeros(2)) - before).abs().amax((0, 1, 3, 4))
    assert changed.nonzero().flatten().tolist() == [3]


def some_known(*known):
    """Return tokens `(B, 4, 4)` with these numbers of known ones in each row."""
    x = torch.randint(12, (len(known), 4, 4))
    for row, number in enumerate(known):
        x[row].flatten()[torch.randperm(16)[number:]] = MASK
    return x


def test_the_encoder_gets_every_known_token_and_a_constant_number_in_training():
    m = model(min_encoder_tokens=0.25).train()
    x = some_known(0, 3, 8)
    order = m.network._order(x.flatten(1) == MASK)
    known = x.flatten(1).gather(1, order) != MASK
    assert [row.nonzero().flatten().tolist() for row in known] == [[], [0, 1, 2], list(range(8))]
    assert [sorted(row) for row in order.tolist()] == [list(range(16))] * 3
    lengths = []
    m.network.encoder[0].register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape[1] - 1))
    m.network(x, torch.zeros(3))
    m.network.eval()
    for x in (some_known(0, 0, 0), some_known(0, 3, 8), some_known(1, 16, 0)):
        m.network(x, torch.zeros(3))
    m.network.min_encoder_tokens = 0
    m.network(some_known(0, 0, 0), torch.zeros(3))
    m.network.min_encoder_tokens = 16
    m.network(some_known(1, 2, 0), torch.zeros(3))
    assert lengths == [8, 4, 8, 16, 0, 16]


def test_a_sample_does_not_depend_on_the_others_of_its_batch():
    m = model().eval()
    x = some_known(0, 6, 9, 16)
    for grad in (True, False):  # the two ways to compute attention
        with torch.set_grad_enabled(grad):
            together = m.network(x, torch.zeros(4))
            alone = torch.cat([m.network(row[None], torch.zeros(1)) for row in x])
        torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("share", [0, 0.5, 1.0])
def test_sampling_sees_every_known_token_and_masked_ones_up_to_a_share(share):
    m = model(min_encoder_tokens=share).eval()
    x = some_known(4, 10)
    with torch.no_grad():
        before, positions, seen = m.network(x, torch.zeros(2)), m.network.positions.weight.clone(), []
        for place in range(16):
            m.network.positions.weight[1 + place].neg_()
            seen.append((m.network(x, torch.zeros(2)) != before).flatten(1).any(1))
            m.network.positions.weight.copy_(positions)
    masked, seen = x.flatten(1) == MASK, torch.stack(seen, dim=1)
    assert seen[~masked].all()
    assert (seen & masked).sum(1).tolist() == {0: [0, 0], 0.5: [8 - 4, 0], 1: [16 - 4, 16 - 10]}[share]


def test_without_dropped_tokens_training_and_sampling_see_the_same():
    m = model(process={"name": "masked", "ratio_min": 0.0}, dropout=0.0)
    x = some_known(4, 9, 16)
    torch.testing.assert_close(m.train().network(x, torch.zeros(3)), m.eval().network(x, torch.zeros(3)))


def test_the_training_step_compiles_without_a_break_and_without_data_dependent_shapes():
    m = model(Space((3,))).train()
    compiled = torch.compile(m.network, backend="eager", fullgraph=True, dynamic=False)
    x = torch.where(torch.rand(4, 4, 4) < 0.6, MASK, 3)
    x[:, :2] = MASK
    assert compiled(x, torch.zeros(4), torch.randn(4, 3)).shape == (4, 1, 12, 4, 4)


def test_it_learns_its_condition():
    m = model(
        Space((), vocab=3),
        width=32,
        condition_dropout=0.0,
        dropout=0.0,
        process={"name": "masked", "label_smoothing": 0.0},
        sampler={"name": "maskgit", "steps": 4},
    ).train()
    optimizer = torch.optim.AdamW(m.parameters(), lr=1e-2)
    pattern = torch.randint(12, (3, 4, 4))
    for _ in range(200):
        labels = torch.randint(3, (16,))
        loss = m(pattern[labels], labels)["cross_entropy"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    samples = m.eval().sample(torch.arange(3), SampleNoise(0, range(3), "t"))
    assert (samples == pattern).float().mean() > 0.9


def test_one_name_brings_process_sampler_and_ramp():
    config = MAGEConfig(autoencoder="toy_tokenizer", guidance={"scale": 2})
    assert (config.process.name, config.sampler.name, config.guidance.ramp) == ("masked", "maskgit", "linear")
    assert MAGEConfig(autoencoder="toy_tokenizer", sampler={"steps": 8}).sampler.steps == 8


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ({"process": "gaussian"}, "the sampler maskgit cannot reverse the process gaussian; those that can: ddim"),
        ({"process": "gaussian", "sampler": "ddim"}, "MAGE fills in masked tokens: use masked"),
        ({"sampler": "ddim"}, "those that can: maskgit"),
    ],
)
def test_a_process_or_sampler_for_other_data_is_refused(config, error):
    with pytest.raises(ValueError, match=error):
        MAGEConfig(autoencoder="toy_tokenizer", **config)


def test_data_of_another_kind_is_refused():
    from rcg.generators.dit import DiT, DiTConfig

    with pytest.raises(UserError, match="the process masked cannot corrupt real numbers of pixels"):
        model(data=Space((3, 8, 8), id="pixels"))
    with pytest.raises(UserError, match="the process gaussian cannot corrupt tokens of tokens"):
        build(DiTConfig(condition="none"), DiT, TOKENS, None)
    with pytest.raises(UserError, match="dit generates real numbers, but tokens gives tokens"):
        build(DiTConfig(condition="none", process="masked", sampler="maskgit"), DiT, TOKENS, None)
    with pytest.raises(UserError, match="must be a multiple of decoder_heads"):
        model(decoder_heads=3)
    with pytest.raises(UserError, match="width is 18; positions need a multiple of 4"):
        model(width=18)


def test_positions_start_with_neighbors_alike():
    m = model()
    encoder, decoder = m.network.positions.weight[1:], m.network.decoder_positions[0, 1:]
    torch.testing.assert_close(encoder.std(), m.network.words.weight.std(), atol=0.005, rtol=0)
    for table in (encoder, decoder):
        near = torch.cosine_similarity(table[5], table[[1, 4, 6, 9]], dim=-1)
        assert near.min() > torch.cosine_similarity(table[5:6], table[[3, 12, 15]], dim=-1).max()


@pytest.mark.parametrize("cond", [Space((3,)), Space((), vocab=5)])
def test_a_training_step_never_asks_the_device_for_a_value(cond):
    # There, tensors have shapes but no values: item(), nonzero() and boolean indices raise.
    with torch.device("meta"):
        m = model(cond).train()
        c = torch.randn(6, 3) if cond.vocab is None else torch.zeros(6, dtype=torch.long)
        m(torch.zeros(6, 4, 4, dtype=torch.long), c)["cross_entropy"].backward()
        assert m.network.words.weight.grad.shape == (14, 16)


@pytest.mark.parametrize("grad", [True, False])
def test_dropout_zeroes_attention_weights_and_outputs_in_training_alone(grad):
    torch.manual_seed(0)
    attention, x = Attention(8, 2, dropout=0.25), torch.randn(64, 10, 8)
    q, k = torch.randn(2, 64, 2, 10, 10)
    with torch.set_grad_enabled(grad):  # the two ways to compute attention
        weights = attend(q, k, torch.eye(10).expand(64, 2, 10, 10), 0.25)
        assert (attention.train()(x) == 0).float().mean().item() == pytest.approx(0.25, abs=0.02)
        assert (attention.eval()(x) == 0).sum() == 0
    assert (weights == 0).float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert weights.sum(-1).mean().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 0.02)])
def test_attention_is_the_mean_of_the_values_that_are_seen(grad, dtype, tolerance):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, n, 8).to(dtype) for n in (6, 9, 9))
    seen = torch.ones(2, 9, dtype=torch.bool)
    seen[1, 4:] = False
    with torch.set_grad_enabled(grad):
        results = [attend(q, k, v, key_mask=seen), attend(q, k, v)]
    weights = torch.einsum("bhnd,bhmd->bhnm", q.double(), k.double() / 8**0.5).exp()
    for result, among in zip(results, (seen, torch.ones_like(seen)), strict=True):
        left = weights * among[:, None, None]
        torch.testing.assert_close(
            result.double(), left / left.sum(-1, keepdim=True) @ v.double(), atol=tolerance, rtol=tolerance
        )
        assert result.dtype == dtype


@pytest.mark.parametrize("cond", [Space((), vocab=10, id="labels"), Space((64,), id="z")])
def test_a_condition_starts_as_large_as_the_tokens_beside_it(cond):
    # Labels with a std of 0.02 are lost beside tokens with a std of 1.
    network = model(cond=cond, width=64).network
    c = torch.arange(10) if cond.vocab else torch.nn.functional.layer_norm(torch.randn(10, 64), (64,))
    slot, token = network.cond(c), network._embed(torch.arange(10)[None], torch.arange(1, 11)[None])
    assert 0.5 < slot.square().mean() / token.square().mean() < 2
