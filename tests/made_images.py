"""Small images, folders of them, and archives of those: what the tests of data and of archives start from."""

import io
import tarfile
import zipfile

import numpy as np
from PIL import Image


def encoded(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()

def picture(seed=0, size=(24, 18), mode="RGB"):
    return Image.fromarray(np.random.RandomState(seed).randint(0, 256, (size[1], size[0], 3)).astype(np.uint8)).convert(mode)

def photos(root, classes=4, each=3):
    for c in range(classes):
        (root / f"bird{c}").mkdir(parents=True)
        for k in range(each): picture(c * 10 + k).save(root / f"bird{c}" / f"{k}.png")
    return root

def zipped(folder, archive, top="", method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(archive, "w", method) as z:
        for file in sorted(p for p in folder.rglob("*") if p.is_file()): z.write(file, top + file.relative_to(folder).as_posix())
    return archive

def tarred(folder, archive, top=".", mode="w"):
    with tarfile.open(archive, mode) as t: t.add(folder, top)
    return archive
