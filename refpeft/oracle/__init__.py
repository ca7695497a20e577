"""The oracle: asks a port what it computes, and says whether, where and by how much it differs from HF peft.

It only ever *calls* the specification; the specification knows nothing of it.
"""
