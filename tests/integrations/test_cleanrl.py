"""The lines that bring elr into CleanRL's dqn.py and ppo.py, in loops of that shape, and in those files themselves.

CleanRL is a collection of scripts, not a package. Clone it and set CLEANRL to the folder, and the last tests run its
files. They need what those files import: gymnasium, tyro and tensorboard.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import elr

ROOT = Path(__file__).resolve().parents[2]

LAYERS = '''\
@@ after "from torch.utils.tensorboard import SummaryWriter" @@
+import elr
+
+
+def normalise(layers):
+    """Put a LayerNorm after each linear layer except the last. A layer in front of it needs no bias."""
+    for i, layer in enumerate(layers[:-1]):
+        if isinstance(layer, nn.Linear):
+            layer.bias = None
+            layers[i] = nn.Sequential(layer, nn.LayerNorm(layer.out_features))
'''
DQN = f"""\
{LAYERS}\
@@ before "def forward(self, x):" @@
+        normalise(self.network)
+
@@ after "optimizer = optim.Adam(" @@
+    schedule = elr.Cyclic(low=0.1 * args.learning_rate, high=args.learning_rate, period=1000)
+    trigger = elr.OnCusum(elr.Cusum(log=True))
+    handle = elr.attach(q_network, optimizer, schedule=schedule, trigger=trigger, meter=100)
@@ after "loss.backward()" @@
+                handle.signal(loss)
@@ after "optimizer.step()" @@
+                for tag, value in handle.scalars().items():
+                    writer.add_scalar(tag, value, global_step)
"""
PPO = f"""\
{LAYERS}\
@@ before "def get_value(self, x):" @@
+        normalise(self.actor)
+        normalise(self.critic)
+
+    def forward(self, x):  # for the check that projection does not change the output
+        return self.actor(x), self.critic(x)
+
@@ after "optimizer = optim.Adam(" @@
+    inputs = torch.randn(64, *envs.single_observation_space.shape, device=device)
+    projection = elr.Projection(agent, heads=["actor.4", "critic.4"], check_inputs=inputs)
+    schedule = elr.Cyclic(low=0.1 * args.learning_rate, high=args.learning_rate, period=1000)
+    handle = elr.attach(agent, optimizer, projection=projection, schedule=schedule, meter=100)
@@ after "optimizer.step()" @@
+                for tag, value in handle.scalars().items():
+                    writer.add_scalar(tag, value, global_step)
"""
RECIPES = {"dqn": DQN, "ppo": PPO}
NETWORKS = {"dqn": "q_network", "ppo": "agent"}


def off(script):
    """Attached with everything off, to a network as it is."""
    return f"""\
@@ after "optimizer = optim.Adam(" @@
+    import elr
+    handle = elr.attach({NETWORKS[script]}, optimizer, projection=elr.NoProjection())
@@ after "optimizer.step()" @@
+                for tag, value in handle.scalars().items():
+                    writer.add_scalar(tag, value, global_step)
"""


def patched(source, recipe):
    """The source with the recipe's lines before or after the one line that begins with the quoted text."""
    for where, anchor, added in re.findall(r'^@@ (after|before) "(.*)" @@\n((?:\+.*\n)+)', recipe, re.M):
        lines = source.splitlines()
        found = [i for i, line in enumerate(lines) if line.strip().startswith(anchor)]
        assert len(found) == 1, f"{len(found)} lines begin with {anchor!r}"
        at = found[0] + (where == "after")
        source = "\n".join([*lines[:at], *(line[1:] for line in added.splitlines()), *lines[at:]]) + "\n"
    return source


# Loops of the same shape: what is called, in which order, with and without gradients. The environments are noise.
OWN_DQN = """
import torch
from torch import nn, optim
from torch.nn import functional as F
from torch.utils.tensorboard import SummaryWriter


class QNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Linear(5, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 3))

    def forward(self, x):
        return self.network(x)


if __name__ == "__main__":
    torch.manual_seed(args.seed)
    writer = SummaryWriter(args.folder)
    q_network, target_network = QNetwork(), QNetwork()
    optimizer = optim.Adam(q_network.parameters(), lr=args.learning_rate)
    target_network.load_state_dict(q_network.state_dict())
    for global_step in range(args.total_timesteps):
        action = q_network(0.05 * torch.rand(1, 5)).argmax(1)  # one row, with gradients, long before the first update
        if global_step >= 20:
            if global_step % 2 == 0:
                x, next_x, reward = torch.randn(32, 5), torch.randn(32, 5), torch.rand(32)
                with torch.no_grad():
                    target = reward + 0.9 * target_network(next_x).max(1).values
                loss = F.mse_loss(q_network(x)[:, 0], target)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            if global_step % 50 == 0:
                for mine, theirs in zip(target_network.parameters(), q_network.parameters(), strict=True):
                    mine.data.copy_(theirs.data)
    writer.close()
"""
OWN_PPO = """
import torch
from torch import nn, optim
from torch.distributions import Categorical
from torch.utils.tensorboard import SummaryWriter


def mlp(outputs, scale):
    layers = [nn.Linear(5, 24), nn.Linear(24, 16), nn.Linear(16, outputs)]
    for layer, gain in zip(layers, (2**0.5, 2**0.5, scale), strict=True):
        nn.init.orthogonal_(layer.weight, gain)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])


class Agent(nn.Module):
    def __init__(self):
        super().__init__()
        self.actor, self.critic = mlp(3, 0.01), mlp(1, 1.0)

    def get_value(self, x):
        return self.critic(x)

    def get_action_and_value(self, x, action=None):
        policy = Categorical(logits=self.actor(x))
        action = policy.sample() if action is None else action
        return action, policy.log_prob(action), policy.entropy(), self.critic(x)


if __name__ == "__main__":
    torch.manual_seed(args.seed)
    writer, device = SummaryWriter(args.folder), torch.device("cpu")
    agent = Agent()
    optimizer = optim.Adam(agent.parameters(), lr=args.learning_rate)
    iterations, global_step = args.total_timesteps // 64, 0
    for iteration in range(iterations):
        if args.anneal_lr:
            optimizer.param_groups[0]["lr"] = (1 - iteration / iterations) * args.learning_rate
        x = torch.randn(64, 5)
        global_step += 64
        with torch.no_grad():
            action, old, _, value = agent.get_action_and_value(x)
            returns = torch.rand(64) + 0.5 * agent.get_value(x).flatten()
        for epoch in range(4):
            for rows in torch.randperm(64).split(16):
                _, new, entropy, value = agent.get_action_and_value(x[rows], action[rows])
                ratio = (new - old[rows]).exp()
                value_loss = (value.flatten() - returns[rows]).square().mean()
                loss = -(ratio * (returns[rows] - returns.mean())).mean() - 0.01 * entropy.mean() + 0.5 * value_loss
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
                optimizer.step()
    writer.close()
"""
OWN = {"dqn": OWN_DQN, "ppo": OWN_PPO}
UPDATES = {"dqn": 250, "ppo": 256}


def execute(source, folder, **flags):
    """Run a loop; its names afterwards."""
    steps = 1024 if "class Agent" in source else 520
    flags = {"seed": 1, "learning_rate": 1e-3, "total_timesteps": steps, "anneal_lr": False, **flags}
    shape = SimpleNamespace(single_observation_space=SimpleNamespace(shape=(5,)))
    names = {"__name__": "__main__", "args": SimpleNamespace(folder=str(folder), **flags), "envs": shape}
    exec(compile(source, "<loop>", "exec"), names)
    return names


def scalars(folder):
    """Tag to [(step, value), ...] of the event file in a folder."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def norm_of(network, layer):
    return float(network.get_submodule(layer).weight.detach().norm())


def state_of(names, script):
    return names[NETWORKS[script]].state_dict()


def layer_names(script):
    return ["network.0.0", "network.2.0"] if script == "dqn" else ["actor.0.0", "actor.2.0", "critic.0.0", "critic.2.0"]


@pytest.mark.parametrize("script", ["dqn", "ppo"])
def test_recipe_projects_schedules_and_logs(script, tmp_path):
    names = execute(patched(OWN[script], RECIPES[script]), tmp_path)
    handle, network = names["handle"], names[NETWORKS[script]]
    assert handle.updates == UPDATES[script]
    assert list(handle.projection.norms) == layer_names(script)
    for layer, norm in handle.projection.norms.items():
        assert norm_of(network, layer) == pytest.approx(norm, rel=1e-6)
    logged = scalars(tmp_path)
    schedule = elr.Cyclic(low=1e-4, high=1e-3, period=1000)
    assert [value for _, value in logged["charts/learning_rate"]] == [
        pytest.approx(schedule(s), rel=1e-6) for s in range(UPDATES[script])
    ]
    for layer in layer_names(script):
        assert len(logged[f"elr/{layer}"]) == 3  # updates 1, 100, 200
        assert [value for _, value in logged[f"norms/parameter/{layer}"]] == [
            pytest.approx(handle.projection.norms[layer], rel=1e-5)
        ] * 3
    assert ("rewarm/statistic" in logged) == (script == "dqn")  # the detector is fed
    # The norms are those that the layers had in the network as its author built it.
    untouched = execute(OWN[script], tmp_path / "untouched", total_timesteps=0)[NETWORKS[script]]
    for layer, norm in handle.projection.norms.items():
        assert norm_of(untouched, layer.removesuffix(".0")) == pytest.approx(norm, rel=1e-6)


@pytest.mark.parametrize("script", ["dqn", "ppo"])
def test_norms_drift_without_the_projection(script, tmp_path):
    """So the test above can fail."""
    recipe = RECIPES[script].replace("(q_network, optimizer,", "(q_network, optimizer, projection=elr.NoProjection(),")
    recipe = recipe.replace("projection=projection", "projection=elr.NoProjection()")
    names = execute(patched(OWN[script], recipe), tmp_path)
    held = execute(patched(OWN[script], RECIPES[script]), tmp_path / "held")["handle"].projection.norms
    drift = [norm_of(names[NETWORKS[script]], layer) / norm - 1 for layer, norm in held.items()]
    assert max(map(abs, drift)) > 1e-3


@pytest.mark.parametrize("script", ["dqn", "ppo"])
def test_everything_off_changes_no_bit(script, tmp_path):
    without = state_of(execute(OWN[script], tmp_path / "without"), script)
    names = execute(patched(OWN[script], off(script)), tmp_path / "off")
    attached = state_of(names, script)
    assert names["handle"].updates == UPDATES[script]
    assert list(attached) == list(without)
    assert all(torch.equal(attached[name], without[name]) for name in without)
    logged = scalars(tmp_path / "off")
    assert list(logged) == ["charts/learning_rate"] and len(logged["charts/learning_rate"]) == UPDATES[script]


def test_network_without_layer_norm_is_refused_before_the_first_update(tmp_path):
    with pytest.raises(ValueError, match=r"depends on the scale of 'network.0' .*, 'network.2' "):
        execute(patched(OWN_DQN, DQN.replace("+        normalise(self.network)\n", "+        pass\n")), tmp_path)


def test_agent_that_is_called_by_its_methods_needs_check_inputs(tmp_path):
    """ppo.py calls agent.get_action_and_value(...), never agent(...), so there is no first batch."""
    with pytest.raises(ValueError, match=r"the network was not called, network\(\.\.\.\), before the first"):
        execute(patched(OWN_PPO, PPO.replace(", check_inputs=inputs", "")), tmp_path)


def test_both_heads_must_be_named(tmp_path):
    """By default the last layer alone, the critic's, is a head."""
    with pytest.raises(ValueError, match=r"depends on the scale of 'actor\.4'"):
        execute(patched(OWN_PPO, PPO.replace('heads=["actor.4", "critic.4"], ', "")), tmp_path)


def test_annealing_of_the_script_is_refused(tmp_path):
    with pytest.raises(
        RuntimeError, match=r"the learning rate of parameter group 0 is 0\.001, but the schedule has set"
    ):
        execute(patched(OWN_PPO, PPO), tmp_path, anneal_lr=True)


def test_page_shows_these_recipes():
    pages = [page for page in (ROOT / "docs").glob("*.md") if re.search("^#+ CleanRL$", page.read_text(), re.M)]
    if not pages:
        pytest.skip("no page under docs/ has the heading CleanRL")
    section = re.split("^#+ CleanRL$", pages[0].read_text(), flags=re.M)[1]
    assert re.findall(r"^```diff\n(.*?)^```", section, re.M | re.S)[:2] == [DQN, PPO]


CLEANRL = os.environ.get("CLEANRL")
FLAGS = {
    "dqn": ["--total-timesteps", "4000", "--learning-starts", "1000", "--train-frequency", "5"],
    "ppo": ["--total-timesteps", "4096", "--no-anneal-lr"],
}
SAVE = """
    report = {"weights": NETWORK.state_dict()}
    if "handle" in globals() and handle.rewarming is not None:
        report |= {"norms": handle.projection.norms, "updates": handle.updates}
    torch.save(report, "report.pt")
"""


def run_file(script, recipe, folder):
    """Run CleanRL's file with these lines added; what it reports and logs."""
    folder.mkdir()
    source = (Path(CLEANRL) / "cleanrl" / f"{script}.py").read_text()
    (folder / f"{script}.py").write_text(patched(source, recipe) + SAVE.replace("NETWORK", NETWORKS[script]))
    paths = os.pathsep.join([str(ROOT), CLEANRL, os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, f"{script}.py", "--no-cuda", *FLAGS[script]]
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    (run,) = (folder / "runs").iterdir()
    return torch.load(folder / "report.pt"), scalars(run)


@pytest.mark.skipif(not CLEANRL, reason="set CLEANRL to a clone of CleanRL")
@pytest.mark.parametrize("script", ["dqn", "ppo"])
def test_cleanrls_own_file(script, tmp_path):
    report, logged = run_file(script, RECIPES[script], tmp_path / "on")
    assert report["updates"] == {"dqn": 599, "ppo": 128}[script]
    assert list(report["norms"]) and set(report["norms"]) == set(layer_names(script))
    for layer, norm in report["norms"].items():
        assert float(report["weights"][f"{layer}.weight"].norm()) == pytest.approx(norm, rel=1e-6)
        assert logged[f"elr/{layer}"]
    schedule = elr.Cyclic(low=2.5e-5, high=2.5e-4, period=1000)
    rates = [value for _, value in logged["charts/learning_rate"]]
    assert rates[0] == pytest.approx(schedule(0), rel=1e-6)
    assert rates[100] == pytest.approx(schedule(100 if script == "dqn" else 95), rel=1e-6)

    without, _ = run_file(script, "", tmp_path / "without")
    attached, _ = run_file(script, off(script), tmp_path / "off")
    assert all(torch.equal(attached["weights"][name], weight) for name, weight in without["weights"].items())
