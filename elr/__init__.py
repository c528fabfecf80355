"""Control and measure the effective learning rate of a PyTorch network: the size of an update relative to the weights.

    projection = Projection(network, check_inputs=batch)    # ValueError if rescaling a weight changes the output
    schedule = WarmupCosine(peak=1e-3, warmup_steps=500, decay_steps=9_500, final=1e-5)   # steps are updates
    trigger = AtKnownChange()
    rewarming = Rewarming(optimizer, schedule, trigger)     # sets the rate of the first update at once
    meter = Meter(scalable_weights(network), every=100, optimizer=optimizer)
    for x, y, task_changed in stream:
        if task_changed:
            trigger.notify()                                # asked after this update; then the schedule restarts
        optimizer.zero_grad(); loss(network(x), y).backward()
        meter.before_step(); optimizer.step(); meter.after_step()   # the step that the optimiser took
        projection.step(rewarming.rate)                     # W <- W ||W_0|| / ||W||
        rewarming.step()                                    # restart if the trigger fires; set the next rate
        print(meter.fresh_scalars())                        # what was measured in this step, by tag

All of them have state_dict() and load_state_dict(). To intervene, change weights in place, then call
projection.project_() to keep their norms, or projection.remember_norms_() to hold the new ones.

One module per idea. The method, Algorithm 1 of arXiv:2507.20057:

    weights            which parameters are scaled: weights (mean and sigma of noisy layers together), gains, offsets
    roles              what a parameter is, by the type of its module
    inventory          all parameters by name, without the names that torch.compile and DataParallel add
    arguments          reads the names that a caller gives
    heads              what is left out: output layers, and what the caller leaves alone
    scale_invariance   a check that the output ignores the scale of the weights
    projection         Normalize-and-Project: hold the weights at their initial norms
    rescaling          its arithmetic
    gains              what it does with the gains and offsets of normalisation layers
    schedules          learning rates as functions of the updates since the last trigger
    triggers           when the schedule starts again: never, every so often, on a detector's alarm, at a known change
    rewarming          drives an optimiser's learning rates by a trigger and a schedule

In training code that is not yours to rearrange:

    attachment         all of the above and the metrics below from inside optimizer.step(): elr.attach
    attachable         what can be attached to what
    rewarming_lr       re-warming as a torch learning-rate scheduler
    step_hooks         act before and after the update inside optimizer.step()
    rates              read and set the rates of an optimiser's groups
    signals            what a detector is told between two updates
    training_batch     keeps the batch before the first update, to check scale invariance on it

Experiments around it:

    layerwise          learning rates per layer
    matching           a control experiment: an unprojected network takes the relative step sizes of a projected one

What the triggers watch:

    changepoint        CUSUM: an alarm when a stream of losses or TD errors rises
    stagnation         an alarm when the features (or the loss) have stopped moving: a fraction of their fastest
    td_errors          TD errors of the transitions just seen, the stream for CUSUM in DQN and Rainbow

What is measured:

    measure            realised and nominal effective learning rates, and norms, per layer
    metrics            feature and plasticity metrics as functions, with their definitions
    metric_kernels     their formulas over tensors, for a batch of measurements
    probe              the metrics of a network's layers on fixed inputs, while it trains
    layouts            all of these, grouped into charts for TensorBoard

Interventions on weights and optimisers:

    interventions      shrink-and-perturb, resets, L2 to the initial weights
    moments            reset an optimiser's moments and step counts in place

Inside other people's trainers:

    integrations       Stable-Baselines3; each module imports its framework

For scripts:

    flags              all of this as command-line flags: dataclasses that check themselves and build the objects
    fast               faster forms for small networks on CPUs: Adam on one vector, a gradient written out in NumPy
    undisturbed        run a network for a measurement and leave no trace in it
    states             checks of saved states

Everything works on tensors and modules only; importing `elr` needs torch and numpy. For parts that a run does without
there are null objects (`NoProjection`, `NoMeter`, `NoProbe`, ...), whose methods do nothing, so that the loop stays
as above.
"""

from elr.attachment import Attachment, attach
from elr.changepoint import Cusum
from elr.interventions import L2Init, reset_, shrink_and_perturb_
from elr.layerwise import layerwise_groups
from elr.layouts import layout
from elr.matching import ElrMatch, NoElrMatch
from elr.measure import Meter, NoMeter
from elr.moments import reset_moments_
from elr.probe import NoProbe, Probe
from elr.projection import NoProjection, Projection
from elr.rewarming import Rewarming
from elr.rewarming_lr import RewarmingLR
from elr.scale_invariance import Call, check_scale_invariance
from elr.schedules import Constant, Cyclic, CyclicThenConstant, LinearDecay, OneCycle, WarmupCosine
from elr.stagnation import Stagnation
from elr.td_errors import RecentTDErrors
from elr.triggers import AtKnownChange, Every, Never, OnCusum, OnStagnation
from elr.weights import scalable_weights

__all__ = [
    "AtKnownChange",  # trigger: when the script announces a change of the task
    "Attachment",  # what attach returns: signal, restart, scalars, state_dict, detach
    "Call",  # the arguments of a network that takes several, for the check of scale invariance
    "Constant",  # schedule: one rate
    "Cusum",  # detector: an alarm when the mean of a stream rises
    "Cyclic",  # schedule: cycles between a low and a high rate
    "CyclicThenConstant",  # schedule: some cycles, then the low rate
    "ElrMatch",  # rescale each step to a given effective learning rate
    "Every",  # trigger: a fixed period
    "L2Init",  # penalty on the distance to the initial parameters
    "LinearDecay",  # schedule: a straight line down
    "Meter",  # measure effective learning rates and norms around optimizer.step()
    "Never",  # trigger: the schedule runs once
    "NoElrMatch",  # an ElrMatch that does nothing
    "NoMeter",  # a Meter that does nothing
    "NoProbe",  # a Probe that does nothing
    "NoProjection",  # a Projection that does nothing
    "OnCusum",  # trigger: an alarm of Cusum
    "OnStagnation",  # trigger: an alarm of Stagnation
    "OneCycle",  # schedule: one rise, one decay
    "Probe",  # measure the features of layers on fixed inputs
    "Projection",  # hold the weights at their initial norms: Normalize-and-Project
    "RecentTDErrors",  # what CUSUM watches in an agent with a replay memory
    "Rewarming",  # set the optimiser's rates by a schedule, and restart it when a trigger fires
    "RewarmingLR",  # re-warming as a torch scheduler
    "Stagnation",  # detector: an alarm when movement has fallen to a fraction of its peak
    "WarmupCosine",  # schedule: linear warm-up, half a cosine down
    "attach",  # let optimizer.step() measure, project and re-warm, in any training loop
    "check_scale_invariance",  # refuse layers on whose scale the output depends
    "layerwise_groups",  # optimiser groups with a learning rate per layer
    "layout",  # group what was measured into charts, for SummaryWriter.add_custom_scalars
    "reset_",  # copy parameters of a fresh network, for the whole network or some modules
    "reset_moments_",  # zero an optimiser's moments and step counts in place
    "scalable_weights",  # the weights to hold or measure, chosen by module type, without the head
    "shrink_and_perturb_",  # theta <- shrink * theta + perturb * theta_fresh
]
