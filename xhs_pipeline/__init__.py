"""Raw Xiaohongshu-style posts to a fine-tuned, evaluated and released Qwen2-VL moderation model."""
