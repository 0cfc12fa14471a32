"""The language of scripts: lines, blocks and variables, without the means to run them."""
