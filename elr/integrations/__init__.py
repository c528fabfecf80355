"""`elr.attach` inside other people's trainers: one module per framework, which it alone imports.

    sb3     Stable-Baselines3: a callback for PPO, A2C, DQN, SAC, TD3 and DDPG

Install with the extra `integrations`. Nothing else in `elr` imports these modules.
"""
