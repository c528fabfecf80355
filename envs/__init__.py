"""Environments: seeded vector environments whose task can change during training, and what is around them.

* `envs.minatar`, `envs.invaders`, `envs.atari`, `envs.catch`: the games, as Gymnasium vector environments.
* `envs.frames`: single frames of a screen, and the stack of the last four that an agent sees.
* `envs.shifts`: what changes (game, actions, observations, rewards); `envs.timetables`: when.
* `envs.worlds`: from one description to the environments that a script trains in; `envs.flags`: the same as flags.
* `envs.evaluation`: returns of a policy, and observations for a probe.
* `envs.replay`: replay memories.
* `envs.games`: lists of games.
* `envs.images`, `envs.modular_arithmetic`: data sets of the supervised scripts.
"""
