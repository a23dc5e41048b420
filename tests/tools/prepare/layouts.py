"""Small data sets in the layouts of Pascal VOC and YOLO."""

from PIL import Image

from gfl.data.orientation import ORIENTATION
from gfl.tools.prepare.to_coco import coco_tree
from gfl.tools.prepare.voc import class_names, read_voc
from gfl.tools.prepare.voc_layout import find_splits
from gfl.tools.prepare.yolo import read_yolo


def write_image(path, width, height, orientation=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.new("RGB", (width, height), (90, 60, 30)).save(path, exif=exif)
    return path


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def voc_object(name, *corners, extra=""):
    tags = "".join(f"<{tag}>{x}</{tag}>" for tag, x in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True))
    return f"<object><name>{name}</name>{extra}<bndbox>{tags}</bndbox></object>"


def voc_xml(width, height, *objects):
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation><filename>stale.jpg</filename>{size}{''.join(objects)}</annotation>"


def write_voc(root):
    """Two images of 20 x 10 with a box each, in split train; that of a is difficult, that of b covers the image."""
    inner, full = voc_object("cat", 3, 4, 7, 9, extra="<difficult>1</difficult>"), voc_object("dog", 1, 1, 20, 10)
    for name, entry in (("a", inner), ("b", full)):
        write_image(root / "JPEGImages" / f"{name}.png", 20, 10)
        write(root / "Annotations" / f"{name}.xml", voc_xml(20, 10, entry))
    write(root / "ImageSets" / "Main" / "train.txt", "b\na\n")
    return root


def write_yolo(root):
    """Two images of 20 x 10 in split train, the first with labels; returns the data.yaml."""
    for name in ("a", "b"):
        write_image(root / "images" / "train" / f"{name}.png", 20, 10)
    write(root / "labels" / "train" / "a.txt", "1 0.5 0.5 0.5 0.4\n")
    return write(root / "data.yaml", "names: [cat, dog]\ntrain: images/train\nval: images/train\n")


def read_voc_split(root, name="train", **settings):
    """One of the splits that ImageSets/Main lists."""
    parts, _ = find_splits(root, None, None, [name])
    (split,) = read_voc(parts, **settings)
    return split


def voc_tree(root, **settings):
    split = read_voc_split(root, **settings)
    return coco_tree(split, class_names([split]))


def yolo_tree(path, **settings):
    (split,), names = read_yolo(path, ["train"], **settings)
    return coco_tree(split, names)


def bboxes(tree):
    return [entry["bbox"] for entry in tree["annotations"]]
