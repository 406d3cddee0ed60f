"""What a configuration needs in memory and time, told before it starts, and what a run reached of it."""
