# SPDX-License-Identifier: Apache-2.0
"""Write a BIDS dataset of two small brains (phantoms of a fetus, 0.08 litres); run inside the image."""

import json
import sys
from pathlib import Path

import nibabel as nib

from bmex_bids.cli.health import phantom

root = Path(sys.argv[1])
texts = {
    "dataset_description.json": json.dumps({"Name": "Two phantoms", "BIDSVersion": "1.10.0"}),
    "README.md": "Phantoms of shells, made to test a container image; nobody's brain.\n" * 5,
    "participants.tsv": "participant_id\tgestational_age_weeks\nsub-01\t24\nsub-02\t26\n",
    "participants.json": json.dumps(
        {"gestational_age_weeks": {"Description": "gestational age at the scan", "Units": "weeks"}}
    ),
}
for name, text in texts.items():
    (root / name).write_text(text, encoding="utf-8")
for name in ("sub-01/anat/sub-01_T2w", "sub-02/ses-A/anat/sub-02_ses-A_T2w"):
    path = root / f"{name}.nii.gz"
    path.parent.mkdir(parents=True)
    nib.save(phantom(), path)
    path.with_name(f"{path.name.removesuffix('.nii.gz')}.json").write_text(
        json.dumps({"Modality": "MR", "SkullStripped": True}), encoding="utf-8"
    )
