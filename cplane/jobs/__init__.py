"""What a job is: the decorator, its options, arguments, states and policies. Talks to no outside system."""
