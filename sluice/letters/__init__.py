"""Dead letters: what could never succeed, looked at and sent again."""
