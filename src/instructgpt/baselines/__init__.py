"""Methods that PPO is compared with."""
