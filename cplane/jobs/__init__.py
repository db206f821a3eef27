"""What a job is: decorator, options, arguments, states and policies. Talks to no outside system."""
