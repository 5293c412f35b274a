"""pydensecrf's names on the cores of segops, for NumPy arrays, without torch.

``import segops.compat.pydensecrf.densecrf as dcrf`` is the one line to change; see docs/compat/pydensecrf.md.
"""
