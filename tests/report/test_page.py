"""The report from small, plausible inputs: whole, self-contained, escaped, and never at a loss for a number."""

import copy
import html
import json
import re
import struct
import subprocess
import sys
from html.parser import HTMLParser
from unittest import mock

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution

from tfprivacy_lab import files
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp.accounting import composition, events, gaussian, group, laplace
from tfprivacy_lab.dp.accounting.dp_accounting_internals import masses_of
from tfprivacy_lab.report import figures, guarantee
from tfprivacy_lab.report import page as report

FIGURES = {"samples", "pretraining", "reconstructions", "training", "roc", "logits", "encrypted_cost"}
INPUTS = (
    "metrics.json",
    "privacy_statement.txt",
    "state/audit.json",
    "state/he.json",
    "state/samples.npz",
    "state/reconstructions.npz",
    "state/logits.npz",
)


def attacked(shift, count, epsilon, draw):
    """What membership_inference returns, for Gaussian scores, without running an attack."""
    members, nonmembers = np.sort(draw.normal(shift, 1, count)), np.sort(draw.normal(0, 1, count))
    thresholds = np.sort(np.r_[members, nonmembers])[::-1]
    rates = [
        [0.0, *((count - np.searchsorted(scores, thresholds)) / count).tolist()] for scores in (nonmembers, members)
    ]
    auc = float((members[:, None] > nonmembers).mean())
    at_fpr = {
        "0.001": {"tpr": 0.0034, "interval": [0.002, 0.006], "reason": None},
        "0.01": {"tpr": 0.0231, "interval": [0.017, 0.031], "reason": None},
    }
    one = {
        "auc": auc,
        "auc_interval": [auc - 0.01, auc + 0.01],
        "advantage": 0.0213,
        "tpr_at_fpr": at_fpr,
        "epsilon_lower_bound": 0.0,
        "epsilon": {"selected_on": 0.1, "largest_possible": 6.518, "test": "members above", "counts": [3, 9, 1, 9]},
        "roc": {"fpr": rates[0], "tpr": rates[1]},
    }
    best = {"auc": auc, "auc_interval": one["auc_interval"], "auc_attack": "loss_threshold", "advantage": 0.0213}
    best |= {"advantage_attack": "entropy_threshold", "epsilon_lower_bound": 0.0123}
    best |= {"tpr_at_fpr": {level: {**found, "attack": "loss_threshold"} for level, found in at_fpr.items()}}
    best |= {"epsilon_largest_possible": 6.518, "epsilon_attack": "loss_threshold"}
    verdict = "The attack shows epsilon >= 0.012, the accountant states <= 3.000: no contradiction."
    return {
        "members": count,
        "nonmembers": count,
        "delta": 1e-5,
        "confidence": 0.95,
        "seed": 0,
        "auc_interval_method": "DeLong",
        "advantage_without_leak": 0.0272,
        "caveat": "one trained model, dependent examples: a heuristic audit of the released model, not a proof",
        "attacks": {"loss_threshold": one, "entropy_threshold": copy.deepcopy(one)},
        "best": best,
        "accounted": {"accounted_epsilon": epsilon, "violation": False, "verdict": verdict},
    }


def measured_metrics(audit):
    return {
        "recipe": "finetune",
        "dataset": "mnist",
        "official_mnist": True,
        "seed": None,
        "split_seed": 0,
        "fast": False,
        "test_accuracy": 0.9817,
        "nonprivate_test_accuracy": 0.9854,
        "test_examples": 10000,
        "epsilon": 2.9996,
        "epsilon_rdp": 3.2932,
        "epsilon_no_amplification": 18.5698,
        "epsilon_no_amplification_exact": 17.4036,
        "accountant": "PLD (dp-accounting 0.6.0)",
        "sampling": "poisson",
        "adjacency": "add_or_remove_one",
        "delta": 1e-5,
        "steps": 538,
        "noise_multiplier": 1.4424,
        "l2_norm_clip": 0.1,
        "learning_rate": 8.0,
        "momentum": 0.9,
        "examples": 55000,
        "batch_size": 2048,
        "epochs": 20,
        "engine": "reference",
        "trained_weights": 1290,
        "history": [
            {"epoch": k, "steps": 27 * k, "epsilon": 0.67 * k**0.5, "validation_accuracy": 0.98 - 0.05 / k}
            for k in range(1, 21)
        ],
        "pretraining": {
            "task": "supervised",
            "images": 60000,
            "epochs": 8,
            "probe": {
                "random": 0.902,
                "autoencoder": 0.934,
                "contrastive": 0.957,
                "supervised+contrastive": 0.972,
                "supervised": 0.978,
            },
            "probe_data": "scikit-learn digits (1,797 real handwritten 8x8 digits, public)",
        },
        "audit": {
            name: {
                **result,
                "attacks": {
                    key: {k: v for k, v in attack.items() if k != "roc"} for key, attack in result["attacks"].items()
                },
            }
            for name, result in audit.items()
        },
        "he": {
            "bfv": {"agreement": 0.9998, "test_accuracy": 0.9816, "exact": True, "error_bound": 0.0213},
            "ckks": {"agreement": 1.0, "test_accuracy": 0.9817, "error_bound": 0.0034, "within_bound": True},
        },
        "seconds": 203.4,
        "seconds_by_stage": {"data": 4.1, "pretrain": 96.2, "train": 41.0, "audit": 22.5, "encrypt": 12.0},
        "commit": "0123abcd0123abcd0123abcd0123abcd0123abcd",
        "versions": {"python": "3.11.7", "tensorflow": "2.15.1", "Pyfhel": "3.5.0"},
        "hardware": "A processor (R), 2 cores, 24 GiB, Linux x86_64",
        "instructions": "avx, fma, avx2",
    }


def measured_he():
    seconds = {"keygen": 0.0021, "encrypt": 0.31, "evaluate": 0.092, "decrypt": 0.021}
    sizes = {"keys": 49477, "query": 20_972_112, "reply": 1_638_512}
    one = {
        "bytes": {"keys": 49477, "query": 4_194_400, "reply": 327_700},
        "seconds": {"keygen": 0.0021, "encrypt": 0.06, "evaluate": 0.018, "decrypt": 0.004},
    }
    bfv = {"bytes": sizes, "seconds": seconds, "one": one, "max_error": 0.0017, "samples": 10000}
    return {"bfv": bfv, "ckks": {**copy.deepcopy(bfv), "max_error": 3.1e-7}}


@pytest.fixture
def out(tmp_path):
    """A folder as a finished walkthrough leaves it."""
    draw = np.random.default_rng(0)
    audit = {
        "dp": attacked(0.02, 500, 2.9996, draw),
        "non_private": attacked(0.1, 500, None, draw),
        "positive_control": attacked(1.2, 300, None, draw),
    }
    blobs = np.exp(-((np.mgrid[-14:14, -14:14] / 6.0) ** 2).sum(axis=0))
    images = np.clip(blobs + draw.normal(0, 0.05, (20, 28, 28)), 0, 1)
    plain = draw.normal(0, 4, (300, 10))
    files.write_json(tmp_path / "metrics.json", measured_metrics(audit))
    files.write_bytes(tmp_path / "privacy_statement.txt", b"PRIVACY STATEMENT\n\nUnit  one <image> & label\n")
    files.write_json(tmp_path / "state" / "audit.json", audit)
    files.write_json(tmp_path / "state" / "he.json", measured_he())
    pixels, labels = (images * 255).astype(np.uint8), np.arange(20) % 10
    files.write_arrays(
        tmp_path / "state" / "samples.npz",
        public_images=pixels,
        public_labels=labels,
        private_images=pixels[::-1],
        private_labels=labels[::-1],
    )
    files.write_arrays(
        tmp_path / "state" / "reconstructions.npz",
        original=images[:8],
        noisy=np.clip(images[:8] + draw.normal(0, 0.3, (8, 28, 28)), 0, 1),
        reconstructed=images[:8] ** 2,
    )
    files.write_arrays(
        tmp_path / "state" / "logits.npz",
        plain=plain,
        bfv=plain + draw.uniform(-2e-3, 2e-3, plain.shape),
        ckks=plain + draw.normal(0, 1e-7, plain.shape),
        labels=plain.argmax(axis=1),
    )
    return tmp_path


class Page(HTMLParser):
    """Tags with attributes, and the text outside style, of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self._stack = [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._stack.append(tag)

    def handle_endtag(self, tag):
        self._stack.append(f"/{tag}")

    def handle_data(self, text):
        if self._stack and self._stack[-1] != "style":
            self.text += text


def built(out, **changed):
    """The page after ``metrics.json`` got the given values; its pictures are not drawn, which takes a second."""
    metrics = {**files.read_json(out / "metrics.json", "metrics"), **changed}
    (out / "metrics.json").write_text(json.dumps(metrics))
    with mock.patch.object(report, "draw", return_value=dict.fromkeys(FIGURES, b"picture")):
        report.build(out)
    return (out / "report.html").read_text()


def test_writes_the_report_the_card_and_every_figure(out):
    written = report.build(out)
    assert set(written) == {"report", "model_card"} | FIGURES
    assert written["report"] == str(out / "report.html")
    for name in FIGURES:
        picture = (out / "figures" / f"{name}.png").read_bytes()
        width, height = struct.unpack(">II", picture[16:24])
        assert picture.startswith(b"\x89PNG\r\n\x1a\n")
        assert 600 <= width <= 900
        assert 150 <= height <= 900
        assert len(picture) < 150_000
    assert not list(out.rglob("*.partial*"))


def test_page_is_self_contained_and_every_figure_has_words(out):
    page = Page(built(out))
    shown = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(shown) == len(FIGURES)
    assert all(attributes["src"].startswith("data:image/png;base64,") for attributes in shown)
    assert all(len(attributes["alt"]) > 40 for attributes in shown)
    assert sum(tag == "figcaption" for tag, _ in page.tags) == len(FIGURES)
    loads = [value for _, attributes in page.tags for key, value in attributes.items() if key in ("src", "href")]
    assert all(value.startswith(("data:", "#")) for value in loads)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "base"}
    text = (out / "report.html").read_text()
    assert "url(" not in text
    assert "@import" not in text
    anchors = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {value[1:] for value in loads if value.startswith("#")} <= anchors


def test_tags_are_balanced(out):
    built(out)
    open_tags, empty = [], {"meta", "img", "br"}

    class Balance(HTMLParser):
        def handle_starttag(self, tag, attributes):
            if tag not in empty:
                open_tags.append(tag)

        def handle_endtag(self, tag):
            assert open_tags.pop() == tag

    Balance().feed((out / "report.html").read_text())
    assert open_tags == []


def test_numbers_of_the_run_are_in_the_page_and_the_card(out):
    text = Page(built(out)).text
    told = ["98.17 %", "98.54 %", "2.9996", "3.2932", "17.4036", "18.5698", "δ = 1e-5", "0.0372", "1.4424", "55,000"]
    told += ["PLD (dp-accounting 0.6.0)", "add or remove one example", "2.01 %", "0.34 %", "21.0 MB", "49.5 kB"]
    told += ["310 ms", "99.98 %", "0.0213", "3.1e-7", "6.52", "0123abcd", "A processor (R)", "tensorflow 2.15.1"]
    assert [number for number in told if number not in text] == []
    card = (out / "model_card.md").read_text()
    told = ["2.9996", "1e-5", "poisson", "98.17 %", "allow_pickle=False", "[-1, 1]", "536813569", "Apache-2.0"]
    assert [number for number in told if number not in card] == []
    # A whole run leaves no gap, so a key that the template misspells shows up here.
    assert report.MISSING not in text + card


RUN = gaussian.DpSgdRun(examples=55_000, batch_size=2_048, noise_multiplier=1.4424, steps=538)


def cells(page, heading):
    """Texts of the cells of the table row that begins with a heading."""
    row = re.search(rf'<tr><th scope="row">{heading}.*?</tr>', page, re.DOTALL).group()
    return [re.sub(r"<.*?>", "", cell) for cell in re.findall(r"<td.*?>(.*?)</td>", row, re.DOTALL)]


def test_figures_for_several_records_of_a_person_are_those_of_this_very_run(out):
    page = built(out)
    figures_of_groups = [f"{group.group_epsilon(RUN, size, 1e-5):.2f}" for size in (2, 3, 4)]
    assert cells(page, "ε at δ = 1e-5") == figures_of_groups
    assert all(float(said) > size * 2.9996 for size, said in zip((2, 3, 4), figures_of_groups, strict=True))
    assert " / ".join(figures_of_groups) in (out / "model_card.md").read_text()
    # Another run, other figures.
    quieter = gaussian.DpSgdRun(55_000, 2_048, 5.0, 538)
    card = f"ε = {group.group_epsilon(quieter, 2, 1e-5):.2f} / "
    built(out, noise_multiplier=5.0)
    assert card in (out / "model_card.md").read_text()


def test_what_an_attacker_finds_is_read_off_the_whole_curve_of_the_run(out):
    text = " ".join(Page(built(out)).text.split())
    said = re.search(r"at most ([\d.]+) % of the members, and at 1 % at most ([\d.]+) %", text).groups()
    # Independently: e^ε FPR + δ(ε) by dp-accounting's own distribution, over a grid of ε.
    loss, grid = composition.privacy_loss(RUN), np.linspace(0, 12, 2_401)
    deltas = np.array(loss.get_delta_for_epsilon(grid))
    for figure, rate in zip(said, (0.001, 0.01), strict=True):
        assert float(figure) == pytest.approx(100 * np.min(np.exp(grid) * rate + deltas), abs=0.02)
    assert float(said[1]) < 5.2


def test_what_a_result_can_make_of_a_belief_and_how_often_it_makes_more(out):
    page = built(out)
    odds = {prior: prior / (1 - prior) * np.exp(2.9996) for prior in (0.001, 0.01, 0.1, 0.5)}
    assert cells(page, "afterwards, at most") == [f"{100 * odd / (1 + odd):.1f} %" for odd in odds.values()]
    text = " ".join(Page(page).text.split())
    beyond = float(re.search(r"probability of at most (\S+) here", text).group(1))
    # The masses of losses above ε in dp-accounting's distribution: less than the bound, and more than δ.
    step = privacy_loss_distribution.from_gaussian_mechanism(
        RUN.noise_multiplier, sampling_prob=RUN.sampling_probability
    )
    removed, _ = masses_of(step.self_compose(RUN.steps))
    losses = (removed.lowest + np.arange(len(removed.masses))) * removed.interval
    truth = removed.masses[losses > 2.9996].sum() + removed.infinity_mass
    assert 1e-5 < truth <= beyond < 5 * truth


def test_noise_is_measured_by_its_norm(out):
    text = " ".join(Page(built(out)).text.split())
    norm, times = re.search(r"σ · C · √d = ([\d.]+), ([\d.]+) times what one example can do", text).groups()
    drawn = np.linalg.norm(np.random.default_rng(0).normal(0, 1.4424 * 0.1, (200, 1290)), axis=1)
    assert float(norm) == pytest.approx(drawn.mean(), rel=0.01)
    assert float(times) == pytest.approx(drawn.mean() / 0.1, rel=0.01)
    assert "204.8" in text


@pytest.mark.parametrize("said", [{}, {"epsilon_no_amplification_adjacency": "zero_out"}])
def test_each_epsilon_stands_beside_its_adjacency(out, said):
    page = built(out, **said)
    rows = re.findall(r"<tr><td>.*?</tr>", page, re.DOTALL)
    adjacency = {re.sub(r"<.*?>", "", re.findall(r"<td>(.*?)</td>", row)[0]): row for row in rows}
    for epsilon in ("2.9996", "3.2932"):
        assert "<td>add or remove one example</td>" in adjacency[epsilon]
    for epsilon in ("17.4036", "18.5698"):
        assert "<td>zero out one example</td>" in adjacency[epsilon]
        assert "add or remove" not in adjacency[epsilon]
    shifted = gaussian.gaussian_epsilon(1.4424 / (2 * 538**0.5), 1e-5)
    assert f"about ε = {shifted:.4g}" in " ".join(Page(page).text.split())


def test_same_numbers_are_promised_for_the_same_processor_only(out):
    text = " ".join(Page(built(out, seed=0)).text.split())
    assert "same kind of processor, with as many cores" in re.search(r"Seed.*?Commit", text).group()
    assert "instructions: avx, fma, avx2" in text
    metrics = files.read_json(out / "metrics.json", "metrics")
    del metrics["instructions"]
    (out / "metrics.json").write_text(json.dumps(metrics))
    assert "instructions:" not in built(out)


def test_numbers_that_describe_no_run_are_missing_not_wrong(out):
    assert guarantee.run_of({"examples": 10, "batch_size": 20, "noise_multiplier": 1, "steps": 1}) is None
    assert guarantee.bound_of({"l1_norm_clip": 1.0, "noise_multiplier": 1.0, "examples": 9, "batch_size": 3}) is None
    logged = [events.to_json(laplace.LaplaceRun(100, 10, 2.0, 5).event())]
    pure = guarantee.bound_of({"l1_norm_clip": 1.0, "events": logged})(0.01)
    assert 0.01 < pure <= 0.01 * np.exp(5 * np.log1p(0.1 * np.expm1(0.5))) + 1e-9
    text = Page(built(out, batch_size=60_000)).text
    assert "at most not measured of the members" in " ".join(text.split())


def test_sections_come_in_the_order_of_the_story(out):
    found = re.findall(r'<h2 id="(\w+)"', built(out))
    assert found == [
        *("wanted", "data", "pretraining", "training", "account"),
        *("attack", "encrypted", "trust", "limits", "reproduce"),
    ]


def test_privacy_statement_is_there_word_for_word(out):
    pre = re.search(r'<pre tabindex="0" aria-label="Privacy statement">(.*?)</pre>', built(out), re.DOTALL).group(1)
    assert html.unescape(pre) == (out / "privacy_statement.txt").read_text()
    assert "<image>" not in pre


@pytest.mark.parametrize("seed", [0, 7])
def test_seeded_run_says_so_prominently_and_in_the_card(out, seed):
    page = built(out, seed=seed)
    assert page.index('id="seeded"') < page.index("<nav")
    assert f"The noise of this run was seeded (seed {seed})" in page
    assert f"--seed {seed}" in page
    assert f"published seed {seed}" in (out / "model_card.md").read_text()


def test_unseeded_run_does_not(out):
    page = built(out, seed=None)
    assert 'id="seeded"' not in page
    assert "--seed" not in page
    assert "published" not in (out / "model_card.md").read_text()


def test_small_run_is_called_small(out):
    assert "This is the small run" in built(out, fast=True)
    assert "--fast" in (out / "report.html").read_text()
    assert "This is the small run" not in built(out, fast=False)


def test_what_comes_from_files_is_escaped(out):
    evil = '<script>alert("x")</script>'
    metrics = measured_metrics(files.read_json(out / "state" / "audit.json", "audit"))
    probe = {**metrics["pretraining"]["probe"], f"$x^{evil}": 0.5}
    pretraining = {**metrics["pretraining"], "task": evil, "probe": probe, "probe_data": evil}
    metrics["audit"]["dp"]["accounted"]["verdict"] = evil
    page = built(
        out, dataset=evil, hardware=evil, versions={evil: evil}, pretraining=pretraining, audit=metrics["audit"]
    )
    assert not [tag for tag, _ in Page(page).tags if tag == "script"]
    assert "<script" not in page
    assert "<script" not in (out / "model_card.md").read_text()
    assert evil in Page(page).text
    assert figures.pretraining(probe, evil).startswith(b"\x89PNG")


def test_rate_that_cannot_be_told_says_why(out):
    metrics = files.read_json(out / "metrics.json", "metrics")
    unknown = {"tpr": None, "interval": None, "reason": "50 non-members are too few", "attack": None}
    metrics["audit"]["dp"]["best"]["tpr_at_fpr"]["0.001"] = unknown
    text = Page(built(out, audit=metrics["audit"])).text
    assert "cannot be told" in text
    assert "50 non-members are too few" in text


def test_violation_and_blind_control_are_not_glossed_over(out):
    audit = files.read_json(out / "metrics.json", "metrics")["audit"]
    assert "Verdict." in built(out)
    audit["dp"]["accounted"] |= {"violation": True, "verdict": "VIOLATION: do not release"}
    audit["positive_control"]["best"] |= {"auc": 0.51, "auc_interval": [0.48, 0.54]}
    page = built(out, audit=audit)
    assert '<div class="note" role="alert"><p><b>VIOLATION' in page
    assert "The positive control was not found out" in page


def test_wrong_encrypted_results_are_not_glossed_over(out):
    he = files.read_json(out / "metrics.json", "metrics")["he"]
    he["bfv"]["exact"], he["ckks"]["within_bound"] = False, False
    assert built(out, he=he).count("something is wrong") == 2


def test_no_missing_number_stops_it(out):
    def emptied(thing):
        if isinstance(thing, dict):
            return {key: emptied(item) for key, item in thing.items()}
        return [emptied(item) for item in thing] if isinstance(thing, list) else None

    for name in ("metrics.json", "state/audit.json", "state/he.json"):
        (out / name).write_text(json.dumps(emptied(files.read_json(out / name, name))))
    report.build(out)
    page = (out / "report.html").read_text()
    assert report.MISSING in page
    assert not re.search(r"\bnan\b", Page(page).text)
    assert not re.search(r"\bnan\b", (out / "model_card.md").read_text())


def test_numbers_that_are_not_finite_are_left_out(out):
    for name, arrays in (("logits", ("plain", "bfv")), ("reconstructions", ("noisy",))):
        path = out / "state" / f"{name}.npz"
        with np.load(path) as loaded:
            changed = dict(loaded)
        for key in arrays:
            changed[key][0] = np.nan
        files.write_arrays(path, **changed)
    report.build(out)
    page = (out / "report.html").read_text()
    assert not re.search(r"\bnan\b", Page(page).text)
    (out / "metrics.json").write_text('{"epsilon": NaN}')
    with pytest.raises(InputError, match=r"metrics\.json"):
        report.build(out)


def test_empty_objects_do_not_stop_it(out):
    for name in ("metrics.json", "state/audit.json", "state/he.json"):
        (out / name).write_text("{}")
    assert report.build(out).keys() >= FIGURES
    assert report.MISSING in (out / "report.html").read_text()
    assert report.MISSING in built(out, audit=None, he=None, history=None, pretraining=None, versions=None)


@pytest.mark.parametrize("name", INPUTS)
def test_missing_input_is_named_and_nothing_is_written(out, name):
    (out / name).unlink()
    before = sorted(out.rglob("*"))
    with pytest.raises(InputError, match=re.escape(str(out / name))):
        report.build(out)
    assert sorted(out.rglob("*")) == before


@pytest.mark.parametrize("name", [name for name in INPUTS if not name.endswith(".txt")])
def test_damaged_input_is_named(out, name):
    (out / name).write_bytes((out / name).read_bytes()[:-40])
    with pytest.raises(InputError, match=re.escape(name)):
        report.build(out)


def test_arrays_of_another_shape_are_refused(out):
    path = out / "state" / "logits.npz"
    with np.load(path) as loaded:
        arrays = dict(loaded)
    files.write_arrays(path, **{**arrays, "bfv": arrays["bfv"][1:]})
    with pytest.raises(InputError, match="differ in shape"):
        report.build(out)
    files.write_arrays(path, **{**arrays, "plain": arrays["plain"][0]})
    with pytest.raises(InputError, match="'plain' of n x n numbers"):
        report.build(out)


def test_same_inputs_give_the_same_bytes(out):
    def contents():
        return {name: open(path, "rb").read() for name, path in report.build(out).items()}

    assert contents() == contents()


@pytest.mark.processes
def test_does_not_load_tensorflow_or_pyplot(out):
    code = (
        "import sys; from tfprivacy_lab import report; report.build(sys.argv[1]); "
        "print([name for name in ('tensorflow', 'Pyfhel', 'matplotlib.pyplot') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(out)], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert done.stderr == ""


def test_tpr_bound_is_the_region_of_dp():
    assert figures.tpr_bound(0, 0, [0, 0.3, 1]) == pytest.approx([0, 0.3, 1])
    assert figures.tpr_bound(1, 1e-5, 0.001) == pytest.approx(np.e * 0.001 + 1e-5)
    assert figures.tpr_bound(1, 0, 0.9) == pytest.approx(1 - np.exp(-1) * 0.1)
    # The region is symmetric: exchanging members and non-members maps its border to itself.
    fpr = np.linspace(0, 1, 101)
    tpr = figures.tpr_bound(1.5, 0.01, fpr)
    inside = tpr < 1
    assert figures.tpr_bound(1.5, 0.01, 1 - tpr)[inside] == pytest.approx(1 - fpr[inside])
    assert figures.tpr_bound(1e6, 0, 0.5) == 1
    assert np.isnan(figures.tpr_bound(None, 1e-5, 0.5))


def test_exact_decryption_has_a_figure_too():
    plain = np.random.default_rng(0).normal(size=(5, 3))
    picture = figures.logits(plain, {"bfv": plain, "ckks": plain}, {"bfv": None, "ckks": 0.0})
    assert picture.startswith(b"\x89PNG")


def test_drawing_leaves_matplotlib_as_it_was():
    import matplotlib

    before = dict(matplotlib.rcParams)
    figures.pretraining({"random": 0.9}, "random")
    assert dict(matplotlib.rcParams) == before
