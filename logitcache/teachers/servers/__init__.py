"""Teachers that answer over HTTP: vLLM and SGLang."""
