"""The main job, end to end, on real input: a fleet, twelve devices, and a story in six steps.

Everything happens through the faces that a stranger has: the command line, the fleet's
HTTP API and the agents' prediction endpoint. `story` says what happens, `world` runs the
processes, `traffic` is the client that asks for predictions and remembers every answer.
"""
