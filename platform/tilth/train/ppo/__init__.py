"""Reinforcement learning from feedback: rollouts, scores, advantages and clipped policy updates in one loop.

stage        the stage ppo: what a recipe may say, and what it may not                       light
settings     penalties, the shape of rewards, updates, watchers                              light
advantages   the family of estimates: gae, grpo, rloo, reinforce_plus_plus                   light
rollouts     the family of generators and the seam to them: asks, samples, weights           light
maths        pure functions of tensors, each with its paper
control      the KL coefficient over time, running moments of scores                         light
policy       a language model with values beside it and its reference below it
experience   what a step learns from, as tensors
ranks        what learners tell each other, and who takes which samples
learner      one step: rollouts, scores, what is said of them, advantages, updates
updates      the passes, minibatches and micro-batches of a step
optimiser    AdamW on every rank; zero: the same by DeepSpeed
decoding     rollouts by the policy itself; served: by vLLM; pool: in Ray actors
held_out     looks at prompts that are never trained on; looks: what they came to (light); probes (light)
detecting    detectors of a training that goes wrong                                         light
loop         steps, looks, detectors, checkpoints, resume
worker       all of it put together for one worker of the stage; source: where its model comes from
"""
