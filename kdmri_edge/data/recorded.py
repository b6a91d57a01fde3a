"""Which files the recorded splits are of, by their SHA-256.

Subjects of other data sets have the same numbers: a folder is one of the recorded ones by what is
in its files, not by their names.
"""

from __future__ import annotations

from typing import Final

__all__ = ["RECORDED_FILES"]

RECORDED_FILES: Final[dict[str, dict[str, str]]] = {
    "brain": {
        "sub-01_ses-1_FLAIR": "3a2ab438704776ad75b67cd8609740a14782cc590b26fc695dff4216ad67d231",
        "sub-01_ses-1_T1w": "e5c495fa0bc6f61f7eb23cd985177f1338748a84e1be295e0639a9b97975ad4b",
        "sub-01_ses-1_T2w": "9ca59a8473619fa20f9bf80f4d7a470f53e4d0ae64ba20acdc49297ce89ad164",
        "sub-01_ses-2_FLAIR": "d3bb8754526f291e787f522520af7011d5bcfadd121f7d1e8cad16e4daf70f27",
        "sub-01_ses-2_T1w": "3481e8e65ae7e920a24a04054e1019e5662aa7f09f485b8a5d9a01a72cf125cb",
        "sub-01_ses-2_T2w": "f271a30ae512c69acb1f028b0681222e95032d44eb95c919b123ac2ad1b1f6a8",
        "sub-03_ses-1_FLAIR": "bed2dc7a40f812ef89434d6aaf0cf83116a0eef3c903422e3732a74b3e1bfbd8",
        "sub-03_ses-1_T2w": "dfeb4d8fcf0a2fb4bb9794ee143cf9696ae9bf881f8b713658912e28affdc159",
        "sub-03_ses-2_FLAIR": "e0ec8ec77763a5fb7177325bb6c6372cb6e744242b9700bc9fc0ba00a27aeff0",
        "sub-03_ses-2_T1w": "a514a804939724ceb1e232b8ef179d4c2f39d9b7b481deed1b7f6368b3d87029",
        "sub-03_ses-2_T2w": "c037a753bf4bef5cfe9ddedc10f855b58ceb06a9888550cc5cb18cede8f820d5",
        "sub-04_ses-1_FLAIR": "78a3a0136b5c0e0ecda98bdc105d49ef08b17ec607400a72989313b8e501b53d",
        "sub-04_ses-1_T1w": "d14d6dd3ecebe0b362afcbe88291360c0f9bad0847aace908acb11e87de1a597",
        "sub-04_ses-1_T2w": "de5f799bccb145fddb9cef72f6676c95c4cf1178bcc16916ab8bd1381aa65532",
        "sub-09_ses-2_FLAIR": "da4aa2cb2111cd6ecdef4c3fe6062573277ee5bd01a9a394e003ecf74aac5213",
        "sub-12_ses-1_FLAIR": "c0c030d766062305d4f6215d2fe7706f995f98bb8234de246dd506cdcbda2734",
        "sub-12_ses-1_T1w": "3decf392b656b41af1ff107fe34aeba8e66fdf23eefc8656dc8804ff62f4e388",
        "sub-12_ses-1_T2w": "da2b3cedef895be66657fa2fb54867d7c67ef9ce05ba2233a540bd0b4aa7a6c8",
        "sub-12_ses-2_FLAIR": "38a68c69ed8a58db14055d0a39cb901dedb0d2cac9f1aa059136ada212b2f805",
        "sub-12_ses-2_T1w": "9322cf08eb03624ff6aec781c74bdcf54a77d414e0695f5de9fd52aaa94f0fac",
        "sub-12_ses-2_T2w": "7528946d765ccae631edbf2cafd375de99a5249b5afb0aa049842c456b857bd3",
        "sub-19_ses-1_FLAIR": "7810456d4881173d8c0f5ee1fc3eb1a14e84d6cf7418f0b95fbebd5bb0a4eb5b",
        "sub-19_ses-2_FLAIR": "524371988486b5cbd758d82d873a883a9ea3c87177fb209c82babd4309d3f76f",
        "sub-19_ses-2_T1w": "e5a1e44bbf880f74640eda6c03abe6af096e6cf0409be3b5859c1429186afe9c",
        "sub-20_ses-2_FLAIR": "2f011e01366182593c0d8bca7b13cd5829b8e52826d323164881ef8fd0906d7e",
        "sub-20_ses-2_T1w": "547488ee9918e90cda99052671e5c59c14e149acddefd72f73ded41797d91a73",
    },
    "cardiac": {
        "sub-101_cine": "50a094a82e4cd579bf35857703293498dda83961aee866710a8474c025fb1eb3",
        "sub-201_cine": "f9a55fe8be430ab21bae8e209ebf395f219d5f110d558a21b6803c2ef716259b",
        "sub-301_cine": "fd9dfe67891139ea775c592b31b1f9fe51d8672366934545412d348f28df30fe",
        "sub-401_cine": "9dd500ef1f68148aedf096dffd1837da4945e0ac1e5e65956125b9cfedad757b",
        "sub-501_cine": "486b752816a0e79bb128768e4b7b712e2b0b85a22970cb35241ddd034b10f149",
    },
}
"""SHA-256 by name without suffix, for each recorded folder."""
