"""The method, over tensors and modules only: `projection` (Normalize-and-Project and gain policies), `schedules` (rates
as functions of steps since the last trigger), `changepoint` (CUSUM on a loss stream), `rewarming` (trigger x schedule),
`layerwise` (per-layer learning rates), `measure` (realised effective learning rates and norms), `features`
(feature-learning and plasticity metrics) and `interventions` (in-place baselines that carry their optimiser state).
"""
