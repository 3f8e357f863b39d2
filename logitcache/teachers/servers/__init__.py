"""Teachers served over HTTP by vLLM or SGLang."""
