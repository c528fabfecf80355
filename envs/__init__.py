"""Environments: seeded vector environments whose task can change during training, and what is around them.

* `envs.minatar`, `envs.atari`, `envs.catch`: the games, as Gymnasium vector environments.
* `envs.array_games`: what the MinAtar games written as arrays share; the games are `envs.breakout`, `envs.freeway`,
  `envs.asterix`, `envs.seaquest` and `envs.invaders`.
* `envs.control`: Gymnasium's control tasks and any other environment with vectors as observations; `envs.control_loop`
  steps Gymnasium's own, `envs.classic_control` computes three of them as arrays.
* `envs.frames`: single frames of a screen, and the stack of the last four that an agent sees.
* `envs.shifts`: what changes (game, actions, observations, rewards, physics); `envs.timetables`: when.
* `envs.worlds`: from one description to the environments that a script trains in; `envs.flags`: the same as flags.
* `envs.evaluation`: returns of a policy, and observations for a probe.
* `envs.replay`: replay memories.
* `envs.games`: lists of games.
* `envs.images`, `envs.modular_arithmetic`: data sets of the supervised scripts.
"""
