"""``autosplit plan`` for every form of model, input and device, its errors with their exit codes, and the demo."""

import json
import os
import re
import runpy
import subprocess
import sys
import textwrap
from pathlib import Path

import msgspec
import pytest
import torch

import autosplit.api
import autosplit.demo
from autosplit.cli import main
from autosplit.placement import Plan

MODELS = """
    import torch
    from torch import nn

    print("a line on stdout from the user's module")

    class Net(nn.Module):
        def __init__(self, width=256):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(width, width), nn.Linear(width, width)

        def forward(self, x, scale=1.0, *, mask=None):
            return self.fc2(self.fc1(x).relu()) * scale

    class AnyName(Net):
        def forward(self, **inputs):
            return super().forward(inputs["x"])

    class Branching(Net):
        def forward(self, x):
            return self.fc1(x) if x.sum().item() > 0 else self.fc2(x)

    class Nothing(nn.Module):
        def forward(self, x):
            return x

    class Broken(nn.Module):
        def __init__(self):
            raise KeyError("weights")

    class Sized(Net):
        def __init__(self, width):
            super().__init__(width)

    class Family:
        small = Net

    def build_net():
        return Net()

    def build_number():
        return 7

    def leave():
        raise SystemExit(0)

    def net_and_args():
        return Net(), (torch.ones(4, 256),)

    def net_and_names():
        return Net(), {"x": torch.ones(4, 256)}

    def net_and_tensor():
        return Net(), torch.ones(4, 256)

    def net_and_number():
        return Net(), 7

    class Tanh(Net):
        def forward(self, x):
            return self.fc2(self.fc1(x).tanh())

    class WithTarget(Net):
        def forward(self, x, target=None):
            y = super().forward(x)
            return y if target is None else (y - target).square().mean()

    def one_tensor_twice():
        x = torch.ones(4, 256)
        return WithTarget(), {"x": x, "target": x}

    ready = Net()
    number = 7
"""
FITS, SPLITS, TOO_SMALL = "1x1GiB", "2x5MiB", "1x1MiB"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder that the user stands in, with one module of models."""
    (tmp_path / "my_models.py").write_text(textwrap.dedent(MODELS))
    (tmp_path / "my_broken.py").write_text("import a_package_that_is_not_there\n")
    (tmp_path / "my_exit.py").write_text("raise SystemExit('not to be imported')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("my_models", "my_broken", "my_exit"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def plan_words(model="my_models:Net", inputs=("x=f32:64x256",), devices=FITS, more=()):
    return ["plan", model, *(w for i in inputs for w in ("--input", i)), "--devices", devices, *more]


def planned(capsys, *args, **kwargs):
    """The plan that ``--json`` prints, the only thing on stdout."""
    code = main([*plan_words(*args, **kwargs), "--json"])
    said = capsys.readouterr()
    assert code == 0, said.err
    return Plan.from_json(said.out)


def refused(capsys, *args, **kwargs):
    """Exit code and error of ``--json``, the only thing on stdout."""
    code = main([*plan_words(*args, **kwargs), "--json"])
    said = capsys.readouterr()
    error = json.loads(said.out)["error"]
    assert error["exit_code"] == code
    assert said.err
    return code, error


# ---------------------------------------------------------------- what works


@pytest.mark.parametrize("name", ["Net", "build_net", "ready", "Family.small"])
def test_forms_of_a_model(capsys, name):
    plan = planned(capsys, f"my_models:{name}")
    assert (plan.strategy, plan.mode) == ("single", "infer")
    assert set(plan.weights) == {"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"}


@pytest.mark.parametrize("name", ["net_and_args", "net_and_names", "net_and_tensor"])
def test_inputs_that_come_with_the_model(capsys, name):
    plan = planned(capsys, f"my_models:{name}", inputs=())
    assert plan.inputs == {"x": "float32[4, 256]"}
    assert plan.assumptions[0] == "inputs: as they came with the model"
    assert planned(capsys, f"my_models:{name}").inputs == {"x": "float32[64, 256]"}


def test_ranges_are_planned_at_their_largest(capsys):
    plan = planned(capsys, inputs=["x=f32:1..8x256"])
    assert plan.inputs == {"x": "float32[8, 256]"}
    assert plan.assumptions[0] == "inputs: x 1..8x256: planned at its largest, 8x256"


@pytest.mark.parametrize("capture", ["graph", "modules"])
def test_capture(capsys, capture):
    assert planned(capsys, more=["--capture", capture]).capture == capture


@pytest.fixture
def exported(folder):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = torch.nn.Linear(8, 8)

        def forward(self, x):
            return self.fc(x).relu()

    torch.export.save(torch.export.export(Net(), (torch.ones(2, 8),)), folder / "net.pt2")
    return "net.pt2"


def test_an_exported_program(capsys, exported):
    plan = planned(capsys, exported, inputs=(), more=["--allow-code"])
    assert (plan.inputs, set(plan.weights)) == ({"x": "float32[2, 8]"}, {"fc.weight", "fc.bias"})


def test_an_exported_program_is_code(capsys, exported, monkeypatch):
    monkeypatch.setattr(torch.export, "load", None)  # not even looked at
    code, error = refused(capsys, exported, inputs=())
    assert (code, error["kind"]) == (2, "usage")
    assert "runs code that is in it" in error["message"]
    assert "--allow-code" in error["message"]


def test_an_exported_program_that_is_none(capsys, folder):
    code, error = refused(capsys, "no.pt2", more=["--allow-code"])
    assert (code, "no file 'no.pt2'" in error["message"]) == (2, True)
    (folder / "bad.pt2").write_bytes(b"PK")
    code, error = refused(capsys, "bad.pt2", more=["--allow-code"])
    assert (code, "loading bad.pt2 raised" in error["message"]) == (2, True)


def test_the_table_and_the_saved_plan(capsys, folder):
    assert main(plan_words(devices="2x1GiB", more=["--out", "plan.json"])) == 0
    said = capsys.readouterr()
    assert said.out.startswith("REPLICATE for inference  fits one device")
    assert "a line on stdout" in said.err
    assert "plan saved: autosplit show plan.json" in said.err
    assert main(["show", "plan.json"]) == 0
    assert capsys.readouterr().out == said.out
    assert Plan.load(folder / "plan.json").strategy == "replicate"


def test_a_split_of_a_training_step(capsys):
    plan = planned(capsys, inputs=["x=f32:1024x256"], devices=SPLITS, more=["--for", "train", "--optimizer", "SGD"])
    assert (plan.strategy, plan.mode) == ("split", "train")
    assert set(plan.placement.values()) == {"gpu:0", "gpu:1"}
    assert (
        main(plan_words(inputs=["x=f32:1024x256"], devices=SPLITS, more=["--for", "train", "--optimizer", "sgd"])) == 0
    )
    assert capsys.readouterr().out.startswith(f"SPLIT for training  {len(plan.stages)} stages")


def test_the_optimizer_counts(capsys):
    def reserved(optimizer):
        plan = planned(capsys, more=["--for", "train", "--optimizer", optimizer])
        return plan.prediction.devices["gpu:0"].peak_bytes

    assert reserved("adamw") >= reserved("sgd") + 2 * 2 * 256 * 256 * 4


def test_objective_and_strategy(capsys):
    plan = planned(capsys, devices="2x1GiB", more=["--strategy", "split", "--minimize", "memory"])
    assert (plan.strategy, plan.objective) == ("split", "memory")
    assert planned(capsys, devices="2x1GiB", more=["--strategy", "single"]).strategy == "single"


def test_a_pipeline_by_its_options(capsys):
    more = ["--strategy", "pipeline", "--microbatches", "2", "--schedule", "gpipe"]
    plan = planned(capsys, devices="2x1GiB", more=more)
    assert plan.strategy == "pipeline"
    assert (plan.pipeline.microbatches, plan.pipeline.schedule, len(plan.pipeline.stages)) == (2, "gpipe", 2)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--strategy", "split", "--microbatches", "2"], "--strategy split has no pipeline"),
        (["--strategy", "single", "--schedule", "1f1b"], "--strategy single has no pipeline"),
        (["--microbatches", "0"], "expected a number of micro-batches, 1 or more, or auto"),
        (["--strategy", "pipeline", "--microbatches", "999"], "999 micro-batches were asked for"),
        (["--strategy", "hybrid"], "need four"),
    ],
)
def test_pipelines_that_are_refused(capsys, more, says):
    code, error = refused(capsys, devices="2x1GiB", more=more)
    assert (code, error["kind"]) == (2, "usage")
    assert says in error["message"]


def test_inputs_by_any_name_and_devices_from_a_file(capsys, folder):
    (folder / "two.toml").write_text(
        'devices = [{name = "a", kind = "x", memory_bytes = 1000000000}, {name = "b", kind = "x", memory_bytes = 9}]'
    )
    assert planned(capsys, "my_models:AnyName", devices="two.toml").cluster.names == ("a", "b")


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("my_models:net_and_number", "gives a module and a int: expected its inputs"),
        ("my_models", "neither pkg.mod:callable nor hf:DIR"),
        (":Net", "neither pkg.mod:callable nor hf:DIR"),
        ("my_modles:Net", "no module 'my_modles'; looked in "),
        ("my_models:Nett", "did you mean 'Net'?"),
        ("my_models:Family.tiny", "has no 'tiny'"),
        ("my_models:Sized", "needs width: name a function without arguments"),
        ("my_models:number", "is a int: expected a Module class"),
        ("my_models:build_number", "gives a int: expected a torch.nn.Module"),
        ("my_models:Broken", "raised KeyError: 'weights' ("),
        ("my_models:leave", "raised SystemExit: 0 ("),
        ("my_models:Nothing", "Nothing has no parameters"),
        ("my_broken:Net", "raised ModuleNotFoundError: No module named 'a_package_that_is_not_there'"),
        ("my_exit:Net", "raised SystemExit: not to be imported"),
    ],
)
def test_models_that_are_refused(capsys, model, says):
    code, error = refused(capsys, model)
    assert (code, error["kind"]) == (2, "usage")
    assert says in error["message"]


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        (["X=f32:1x256"], "no argument 'X'; Net.forward takes x, scale, mask"),
        (["x=f32:1x256", "maks=f32:1"], "no argument 'maks' (did you mean 'mask'?)"),
        (["mask=f32:1"], "missing input x: Net.forward takes x, scale, mask; add --input x=TYPE:SIZES"),
        ([], "missing input x"),
    ],
)
def test_inputs_that_forward_does_not_take(capsys, inputs, says):
    code, error = refused(capsys, inputs=inputs)
    assert code == 2
    assert says in error["message"]


@pytest.mark.parametrize(
    ("devices", "says"),
    [
        ("0x24GiB", "zero devices"),
        ("2x24Gb", "means bits"),
        ("2x24QiB", "unit"),
        ("warp:0", "unknown device 'warp:0'"),
        ("no.toml", "no.toml"),
        ("cuda:99", "cuda:99"),
        ("auto", "no accelerator is present; give 'cpu', or describe devices, as in '2x24GiB'"),
        ("2xRTX4091,1xRTX3060", "did you mean RTX4090"),
    ],
)
def test_devices_that_are_refused(capsys, devices, says):
    code, error = refused(capsys, devices=devices)
    assert (code, error["kind"]) == (2, "usage")
    assert says in error["message"]


def test_a_split_over_one_device(capsys):
    code, error = refused(capsys, more=["--strategy", "split"])
    assert code == 2
    assert "needs two devices" in error["message"]


def test_an_out_that_cannot_be_written(capsys):
    code, error = refused(capsys, more=["--out", "no/such/folder/plan.json"])
    assert code == 2
    assert "cannot write" in error["message"]


def test_does_not_fit(capsys):
    code, error = refused(capsys, inputs=["x=f32:1024x256"], devices=TOO_SMALL)
    assert (code, error["kind"]) == (3, "capacity")
    assert error["has_bytes"] == {"gpu:0": 2**20}
    assert error["short_bytes"]["gpu:0"] == error["needs_bytes"]["gpu:0"] - 2**20 > 0
    assert main(plan_words(inputs=["x=f32:1024x256"], devices=TOO_SMALL)) == 3
    said = capsys.readouterr()
    assert said.out == ""
    assert str(error["short_bytes"]["gpu:0"]) in said.err


def test_cannot_be_captured(capsys):
    code, error = refused(capsys, "my_models:Branching")
    assert (code, error["kind"]) == (4, "capture")
    assert "my_models.py" in error["message"]


def test_inputs_of_a_wrong_size(capsys):
    code, _ = refused(capsys, inputs=["x=f32:1x7"])
    assert code == 4


@pytest.mark.parametrize(
    ("raised", "code", "kind"),
    [
        (ZeroDivisionError("oops"), 1, "bug"),
        (autosplit.PlanError("contradiction"), 1, "bug"),
        (torch.OutOfMemoryError("full"), 6, "device-fault"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_goes_wrong_inside(capsys, monkeypatch, raised, code, kind):
    def fail(*args, **kwargs):
        raise raised

    monkeypatch.setattr(autosplit.api, "plan", fail)
    found, error = refused(capsys)
    assert (found, error["kind"]) == (code, kind)
    assert main(plan_words(more=["--debug"])) == code
    assert "Traceback" in capsys.readouterr().err


# ---------------------------------------------------------------- check with a model


@pytest.fixture
def plan_file(capsys):
    assert main(plan_words(devices="2x1GiB", more=["--strategy", "split", "--out", "plan.json"])) == 0
    capsys.readouterr()
    return "plan.json"


def checked(capsys, *words):
    code = main(["check", *words, "--json"])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("words", [[], ["--input", "x=f32:64x256"]])
def test_check_with_the_model(capsys, plan_file, words):
    code, found = checked(capsys, plan_file, "my_models:Net", *words)
    assert (code, found["not_checked"]) == (0, [])
    assert found["checked"][-2:] == ["graph: 4 nodes, as planned", "memory: predicted again, as planned"]


def test_check_with_inputs_of_another_size(capsys, plan_file):
    code, found = checked(capsys, plan_file, "my_models:Net", "--input", "x=f32:1024x256")
    assert code == 0
    assert found["checked"][-1].startswith("memory: costed again")
    assert found["needs_bytes"]["gpu:0"] > Plan.load(plan_file).prediction.devices["gpu:0"].reserved_bytes
    code, found = checked(capsys, plan_file, "my_models:Net", "--input", "x=f32:2000000x256")
    assert (code, found["error"]["kind"]) == (3, "capacity")


@pytest.mark.parametrize("batch", [(), ("--batch", "8"), ("--batch", "max")])
def test_check_of_one_tensor_given_twice(capsys, batch):
    made = planned(capsys, "my_models:one_tensor_twice", inputs=(), more=("--out", "plan.json", *batch))
    assert made.inputs["target"] == "= x"
    assert "inputs: target is the tensor of x" in made.assumptions
    for model in (
        "one_tensor_twice",
        "WithTarget",
    ):  # without inputs those of the plan are taken
        assert main(["check", "plan.json", f"my_models:{model}"]) == 0
        assert "memory: predicted again, as planned" in capsys.readouterr().out
    two = ["--input", "x=f32:4x256", "--input", "target=f32:4x256"]
    assert main(["check", "plan.json", "my_models:WithTarget", *two]) == 0
    assert "memory: costed again" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("name", ["x", "target", "no such"])
def test_check_of_a_plan_whose_input_is_that_of_none(capsys, folder, name):
    plan = planned(capsys, "my_models:one_tensor_twice", inputs=())
    changed = msgspec.structs.replace(plan, inputs={"x": "float32[4, 256]", "target": f"= {name}"})
    changed.save(folder / "plan.json")
    code = main(["check", "plan.json", "my_models:WithTarget"])
    assert code == 0
    assert ("graph: no inputs" in capsys.readouterr().out) == (name != "x")


def test_check_of_a_stale_plan(capsys, plan_file):
    code, found = checked(capsys, plan_file, "my_models:Tanh")
    assert (code, found["error"]["kind"]) == (5, "plan")
    assert "stale plan: node 1 is '/tanh' now, '/relu' was planned" in found["error"]["message"]


@pytest.mark.parametrize("form", ["hub[1]", "int64[1", "__builtins__[8]"])
def test_check_of_a_plan_with_inputs_that_are_none(capsys, plan_file, folder, form):
    path = folder / plan_file
    path.write_text(path.read_text().replace('"float32[64, 256]"', json.dumps(form)))
    code, found = checked(capsys, plan_file, "my_models:Net")
    assert (code, found["error"]["kind"]) == (5, "plan")
    assert "not as it was written" in found["error"]["message"]


def test_check_of_an_edited_plan(capsys, plan_file, folder):
    path = folder / plan_file
    path.write_text(path.read_text().replace('"fc2/linear": "gpu:1"', '"fc2/linear": "gpu:0"'))
    code, found = checked(capsys, plan_file, "my_models:Net")
    assert (code, found["is_edited"]) == (0, True)
    assert found["checked"][-1].startswith("memory: costed again")
    code, found = checked(capsys, plan_file, "my_models:AnyName")  # takes its inputs by any name
    assert code == 0
    path.write_text(path.read_text().replace('"x": "float32', '"y": "float32'))
    code, found = checked(capsys, plan_file, "my_models:Net")
    assert (code, found["error"]["kind"]) == (5, "plan")


# ---------------------------------------------------------------- hf:DIR

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 128,
    "intermediate_size": 128,
    "torch_dtype": "float16",
}
LLAMA_7B = LLAMA | {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
    "intermediate_size": 11008,
}


def write_config(folder, config):
    (folder / "hub").mkdir(exist_ok=True)
    (folder / "hub" / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))


def test_a_misspelt_input_of_a_model_that_takes_any_name(capsys, folder):
    pytest.importorskip("transformers")
    write_config(folder, LLAMA)
    code, error = refused(capsys, "hf:hub", inputs=["inputs_ids=i64:1x16"])
    assert code == 2
    assert (
        "no argument 'inputs_ids' (did you mean 'input_ids'?); LlamaForCausalLM.forward takes input_ids"
        in (error["message"])
    )


def test_a_folder_with_a_config(capsys, folder):
    pytest.importorskip("transformers")
    write_config(folder, LLAMA)
    half = planned(capsys, "hf:hub", ["input_ids=i64:1x16"], more=["--strategy", "single"])
    assert "model.layers.3.mlp.down_proj.weight" in half.weights
    assert torch.get_default_dtype() == torch.float32
    write_config(folder, LLAMA | {"torch_dtype": "float32"})
    full = planned(capsys, "hf:hub", ["input_ids=i64:1x16"], more=["--strategy", "single"])
    assert full.prediction.devices["gpu:0"].weight_bytes > 1.9 * half.prediction.devices["gpu:0"].weight_bytes


def test_inputs_of_a_transformers_model_have_a_default(capsys, folder):
    pytest.importorskip("transformers")
    write_config(folder, LLAMA)
    plan = planned(capsys, "hf:hub", inputs=())
    assert plan.inputs == {"input_ids": "int64[1, 128]"}
    assert plan.assumptions[0] == "inputs: none were given; taken as --input input_ids=i64:1x128"
    write_config(folder, LLAMA | {"max_position_embeddings": 16})
    assert planned(capsys, "hf:hub", inputs=()).inputs == {"input_ids": "int64[1, 16]"}
    vision = {"model_type": "vit", "architectures": ["ViTModel"], "image_size": 32, "patch_size": 16}
    write_config(folder, vision | {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2})
    assert planned(capsys, "hf:hub", inputs=()).inputs == {"pixel_values": "float32[1, 3, 32, 32]"}
    pair = {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "vocab_size": 64}
    write_config(folder, {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], **pair})
    assert set(planned(capsys, "hf:hub", inputs=()).inputs) == {"input_ids", "decoder_input_ids"}


def test_a_config_without_architectures_and_with_needless_code(capsys, folder):
    pytest.importorskip("transformers")
    config = {key: value for key, value in LLAMA.items() if key != "architectures"}
    write_config(folder, config | {"auto_map": {"AutoConfig": "evil.Config"}})
    (folder / "hub" / "evil.py").write_text("raise SystemError('code of the folder was run')")
    assert "layers.3.mlp.down_proj.weight" in planned(capsys, "hf:hub", ["input_ids=i64:1x16"]).weights


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("{", "is not JSON"),
        ("[]", "holds a list"),
        (LLAMA | {"model_type": "lama"}, "did you mean 'llama'?"),
        (LLAMA | {"model_type": "evil", "auto_map": {"AutoModel": "evil.Model"}}, "its code (auto_map) is not run"),
        (LLAMA | {"architectures": ["Llama4Everything"]}, "'Llama4Everything' is not one"),
        (LLAMA | {"architectures": ["__builtins__"]}, "'__builtins__' is not one"),
        (LLAMA | {"architectures": ["LlamaConfig"]}, "'LlamaConfig' is not one"),
        (LLAMA | {"quantization_config": {"quant_method": "fp8"}}, "cannot be planned yet"),
        (LLAMA | {"hidden_size": "wide"}, "building the model of "),
    ],
)
def test_configs_that_are_refused(capsys, folder, config, says):
    pytest.importorskip("transformers")
    write_config(folder, config)
    code, error = refused(capsys, "hf:hub", ["input_ids=i64:1x16"])
    assert (code, error["kind"]) == (2, "usage")
    assert says in error["message"]


def test_a_folder_without_a_config(capsys):
    code, error = refused(capsys, "hf:gpt2", ["input_ids=i64:1x16"])
    assert code == 2
    assert "nothing is downloaded" in error["message"]


def test_transformers_is_optional(capsys, folder, monkeypatch):
    write_config(folder, LLAMA)
    monkeypatch.setitem(sys.modules, "transformers", None)
    code, error = refused(capsys, "hf:hub", ["input_ids=i64:1x16"])
    assert code == 2
    assert "pip install transformers" in error["message"]


@pytest.mark.parametrize(("devices", "code"), [("2x16GiB", 0), ("2x8GiB", 0), ("1x8GiB", 3)])
def test_a_7b_model_is_planned_in_a_minute_and_3_gb(folder, devices, code):
    pytest.importorskip("transformers")
    write_config(folder, LLAMA_7B)
    words = plan_words("hf:hub", ["input_ids=i64:1x2048"], devices, ["--json"])
    process = subprocess.Popen([sys.executable, "-m", "autosplit", *words], stdout=subprocess.PIPE)
    document = json.loads(process.stdout.read())
    _, status, used = os.wait4(process.pid, 0)
    process.stdout.close()
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds, peak_gb = used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e9
    print(f"{devices}: {seconds:.1f} s of CPU time, {peak_gb:.2f} GB")
    assert process.returncode == code, document
    assert seconds < 60
    assert peak_gb < 3
    if code:
        assert document["error"]["short_bytes"]["gpu:0"] > 13_000_000_000 - 8 * 2**30


# ---------------------------------------------------------------- demo


def test_demo(capsys):
    assert main(["demo"]) == 0
    said = capsys.readouterr().out
    assert "On one device: GPT does not fit" in said
    assert "\nSPLIT for training  " in said
    assert said.endswith("\nidentical\n")
    losses = [float(line.split()[1]) for line in said.splitlines() if re.match(r"\d+ +\d+\.\d+ +\d", line)]
    assert len(losses) == autosplit.demo.STEPS
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] / 10
    printed = "\n".join(line.rstrip() for line in said.splitlines())
    assert code_blocks("text")[0].strip() in printed, "README.md shows another plan than the demo prints"


def test_demo_as_json(capsys):
    assert main(["demo", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == {"identical": True}
    assert "identical" in said.err


def test_demo_sees_a_difference(capsys, monkeypatch):
    def drifting(model, *args, **kwargs):
        split = autosplit.api.partition(model, *args, **kwargs)
        with torch.no_grad():
            split.norm.bias += 1e-6
        return split

    monkeypatch.setattr(autosplit.demo, "STEPS", 2)
    monkeypatch.setattr(autosplit.demo, "partition", drifting)
    assert main(["demo"]) == 1
    said = capsys.readouterr().out
    assert "not as unsplit, or not as planned: " in said
    assert said.endswith("\nDIFFERENT\n")


# ---------------------------------------------------------------- what the documents say

ROOT = Path(__file__).parents[2]


def code_blocks(language):
    """The code blocks of README.md that are marked with this language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    "block", code_blocks("python"), ids=["first screen", "a pipeline", "without data", "the engine alone"]
)
def test_python_in_the_readme_runs(capsys, block):
    exec(compile(block, "README.md", "exec"), {})
    engine = re.escape("{'a': 'gpu:0', 'b': 'gpu:0', 'c': 'gpu:1', 'd': 'gpu:1'} ") + r"\d+ 0\.0"
    pipeline = r"gpipe \[\d+, \d+\]"
    assert re.match(rf"does not fit one device|{pipeline}|device +capacity|{engine}", capsys.readouterr().out)


def test_the_plan_command_in_the_readme(capsys):
    words = next(line for line in code_blocks("sh")[1].splitlines() if "autosplit.demo:GPT" in line).split()
    assert main(words[1:]) == 0
    assert capsys.readouterr().out.startswith("SPLIT for training  2 stages")


def test_the_engine_example(capsys):
    runpy.run_path(str(ROOT / "examples" / "solve_any_graph.py"), run_name="__main__")
    said = capsys.readouterr().out
    values = {
        line.partition(":")[0]: int(line.split()[1]) for line in said.splitlines() if "no placement is below" in line
    }
    assert set(values) == {"latency", "throughput", "memory"}
    assert values["latency"] < 4_806_000  # all of it, one after the other


def test_the_tutorial(capsys):
    runpy.run_path(str(ROOT / "examples" / "tutorial_two_devices.py"), run_name="__main__")
    said = capsys.readouterr().out
    for line in ("transfers: 2", "outputs equal: True", "gradients equal: True", "still the user's class: True"):
        assert f"{line}\n" in said


def test_the_transformers_example():
    pytest.importorskip("transformers")
    example = ROOT / "examples" / "transformer_train.py"  # it sets the process's number of threads
    said = subprocess.run([sys.executable, example], stdout=subprocess.PIPE, text=True, check=True).stdout
    assert said.startswith("SPLIT for training  ")
    assert "parameters equal after 5 steps: True\nstill tied: True\n" in said
