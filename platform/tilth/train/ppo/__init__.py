"""Reinforcement learning from feedback: rollouts, scores, advantages and clipped policy updates in one loop."""
