"""The paper's measurements: from judged completions to rows with intervals."""
