"""The same job as other people's programs would run it: a plain loop, pfl-research, Flower with Ray and Opacus.

python -m simulations.baselines.install [pfl|flower]    makes the environments, in .venv-peers
"""
