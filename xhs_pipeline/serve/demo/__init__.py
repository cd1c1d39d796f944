"""The demo page over the service: judge a post, appeal, review. Decides nothing; needs the extra `demo` (Gradio).

`mounted` is the application, `layout` the page, `desk` and `review` what its two tabs do, `render` and `words` how that reads.
"""
