"""The playground: users without accounts try models, agree to keep their prompts, and give feedback."""
