"""The model in use, over HTTP: judge posts, file and review appeals. How a post is cleaned, judged and decided is not made here."""
