# SPDX-License-Identifier: Apache-2.0
"""The published networks evaluated layer by layer, written from the tables and not from our code.

One function a release: a state dict (PyTorch), or blobs by layer name (Caffe), goes in.
"""

import struct

import torch
import torch.nn.functional as F


def randomised(network, seed=0):
    """Random weights, statistics and scales, so that no channel can be mistaken for another."""
    generator = torch.Generator().manual_seed(seed)
    network = network.double().eval()
    for name, tensor in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        if name.endswith("running_var"):
            tensor.copy_(noise.abs() + 0.3)
        elif ".bn" in f".{name}" and name.endswith("weight"):
            tensor.copy_(1 + 0.3 * noise)
        elif tensor.ndim == 5:
            tensor.copy_(noise * (2 / tensor[0].numel()) ** 0.5)
        else:
            tensor.copy_(0.3 * noise)
    return network


def literal(s, x, *, regular_b=False, regular_d=False):
    """The table of one ADU-Net; ``regular_*`` undo the two irregularities of the release."""

    def conv(n, t):
        return F.conv3d(t, s[f"conv{n}.weight"], s[f"conv{n}.bias"], padding=1)

    def up(n, t):
        weight, bias = s[f"deconv{n}.weight"], s[f"deconv{n}.bias"]
        return F.conv_transpose3d(t, weight, bias, stride=2, padding=1)

    def act(n, t):
        part = [s[f"bn{n}.{k}"] for k in ("running_mean", "running_var", "weight", "bias")]
        return F.relu(F.batch_norm(t, *part, training=False, eps=1e-5))

    def pool(t):
        return F.max_pool3d(t, 3, stride=2, padding=1)

    def cat(*parts):
        return torch.cat(parts, dim=1)

    stem = act("1", conv("1", x))
    # dense A
    a2 = conv("2", stem)
    a3 = cat(a2, conv("3", act("2", a2)))
    a4 = cat(a3, conv("4", act("3", a3)))
    a5 = cat(a4, conv("4_1", act("4", a4)))
    skip1 = conv("5", act("4_1", a5))
    # dense B
    b6 = conv("6", pool(act("5", skip1)))
    new = conv("7", act("6", b6))
    b7 = cat(b6, new) if regular_b else cat(new, b6)
    b8 = cat(b7, conv("8", act("7", b7)))
    b9 = cat(b8, conv("9", act("8", b8)))
    skip2 = conv("10", act("9", b9))
    # bottleneck
    skip3 = conv("11", pool(act("10", skip2)))
    low = cat(skip3, up("11", pool(act("11", skip3))))
    # dense C
    c12 = conv("12", low)
    c13 = cat(c12, conv("13", act("12", c12)))
    c14 = cat(c13, conv("14", act("13", c13)))
    c15 = cat(c14, conv("15", act("14", c14)))
    half = cat(skip2, up("15", act("15", c15)))
    # dense D
    d16 = conv("16", half)
    d17 = cat(d16, conv("17", act("16", d16)))
    d18 = cat(d17, conv("18", act("17", d17)))
    d18_active = act("18", d18)
    d19 = cat(d18 if regular_d else d18_active, conv("19", d18_active))
    # dense E
    e20 = conv("20", act("19", d19))
    e21 = cat(e20, conv("21", act("20", e20)))
    e22 = cat(e21, conv("22", act("21", e21)))
    e23 = cat(e22, conv("23", act("22", e22)))
    full = cat(skip1, up("23", act("23", e23)))
    # dense F
    f24 = conv("24", full)
    f25 = cat(f24, conv("25", act("24", f24)))
    f26 = cat(f25, conv("26", act("25", f25)))
    f27 = cat(f26, conv("27", act("26", f26)))
    # dense G
    g28 = conv("28", act("27", f27))
    g29 = cat(g28, conv("29", act("28", g28)))
    g30 = cat(g29, conv("30", act("29", g29)))
    g31 = cat(g30, conv("31", act("30", g30)))
    return act("32", conv("32", act("31", g31)))


def literal_pair(s, x):
    """BME-X, PyTorch: ``s`` has the published names, ``…``, ``…_con`` and ``…_recon``."""

    def part(suffix):
        chosen = {}
        for name, tensor in s.items():
            layer, _, kind = name.rpartition(".")
            own = next((e for e in ("_recon", "_con") if layer.endswith(e)), "")
            if own == suffix:
                chosen[f"{layer.removesuffix(suffix)}.{kind}"] = tensor
        return chosen

    con = part("_con")

    def connect(n, t):
        t = F.conv3d(t, con[f"conv{n}.weight"], con[f"conv{n}.bias"], padding=1)
        four = [con[f"bn{n}.{k}"] for k in ("running_mean", "running_var", "weight", "bias")]
        return F.relu(F.batch_norm(t, *four, training=False, eps=1e-5))

    seg = literal(part(""), x)
    joined = torch.cat([connect("1", torch.softmax(seg, 1)), connect("2", x)], 1)
    return seg, literal(part("_recon"), joined)


# ------------------------------------------------------------------ Caffe
#: the layers of one of the two networks between its input and its head, in order
#: block: (stage, BatchNorm that closes it, its Scale)
CAFFE_BLOCKS = {
    "A": ("", "bn2", "scale_conv2"),
    "B": ("conv2a-", "bn4", "scale_conv4"),
    "C": ("conv4-", "conv4_bn", "scale_conv4_fine"),
    "D": ("conv5-", "conv5_bn", "scale_conv5"),
    "E": ("conv5_2-", "conv5_2_bn", "scale_conv5_2"),
    "F": ("conv6-", "conv6_bn", "scale_conv6_fine"),
    "G": ("conv6_2-", "conv6_2_bn", "scale_conv6_2"),
}


def literal_caffe(blobs, x):
    """BME-X, Caffe: ``blobs`` is layer name → list of arrays, as the file has them."""

    def conv(name, t):
        return F.conv3d(t, *blobs[name], padding=1)

    def up(name, t):
        return F.conv_transpose3d(t, *blobs[name], stride=2, padding=1)

    def act(norm, scale, t):
        mean, var, factor = blobs[norm]
        gamma, beta = blobs[scale]
        lie = (1, -1, 1, 1, 1)
        t = (t - (mean / factor).reshape(lie)) / (var / factor + 1e-5).sqrt().reshape(lie)
        return torch.clamp(t * gamma.reshape(lie) + beta.reshape(lie), min=0)

    def pool(t):  # Caffe rounds the size up: a window may hang over the far end
        return F.max_pool3d(F.pad(t, (0, 1) * 3, value=-torch.inf), 3, stride=2)

    def dense(label, block, t):
        stage, norm, scale = CAFFE_BLOCKS[block]
        name = label + stage
        t = conv(f"{name}Convolution1", t)
        for k in (1, 2, 3):
            active = act(f"{name}BatchNorm{k}", f"{name}Scale{k}", t)
            t = torch.cat([t, conv(f"{name}Convolution{k + 1}", active)], 1)
        return act(label + norm, label + scale, t)

    def network(label, t):
        skip1 = conv(f"{label}conv1c", dense(label, "A", t))
        t = pool(act(f"{label}bn3", f"{label}scale_conv3", skip1))
        skip2 = conv(f"{label}conv2b", dense(label, "B", t))
        t = pool(act(f"{label}bn5", f"{label}scale_conv5_fine", skip2))
        skip3 = conv(f"{label}conv3a", t)
        t = up(f"{label}deconv4", pool(act(f"{label}bn6", f"{label}scale_conv6", skip3)))
        t = up(f"{label}deconv5", dense(label, "C", torch.cat([skip3, t], 1)))
        t = dense(label, "E", dense(label, "D", torch.cat([skip2, t], 1)))
        t = torch.cat([skip1, up(f"{label}deconv6", t)], 1)
        t = conv(f"{label}conv6_3-Convolution1", dense(label, "G", dense(label, "F", t)))
        return act(f"{label}conv6_3-BatchNorm1", f"{label}conv6_3-Scale1", t)

    stem = act("Labelbn1", "Labelscale_conv1", conv("Labelconv1a", x))
    scores = network("Label", stem)
    tissue = conv("Labelconv6_4-Convolution1", scores)
    tissue = act("Labelconv6_4-BatchNorm1", "Labelconv6_4-Scale1", tissue)
    image = act("bn1", "scale_conv1", conv("conv1a", x))
    return scores, network("", torch.cat([tissue, image], 1))


def random_caffe(width=32, seed=0):
    """Blobs of a Caffe model of random weights: 67 Convolution, 67 BatchNorm, 67 Scale, 6 Deconvolution."""
    generator = torch.Generator().manual_seed(seed)
    blobs, kinds = {}, {}

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    def conv(name, n_in, n_out):
        blobs[name] = [draw(n_out, n_in, 3, 3, 3) * (2 / (27 * n_in)) ** 0.5, 0.3 * draw(n_out)]
        kinds[name] = "Convolution"

    def up(name, n_in, n_out):
        blobs[name] = [draw(n_in, n_out, 4, 4, 4) * (2 / (8 * n_in)) ** 0.5, 0.3 * draw(n_out)]
        kinds[name] = "Deconvolution"

    def norm(name, scale, n):
        factor = 1 + 998 * torch.rand(1, generator=generator)  # Caffe's sums go up to 999.98
        blobs[name] = [0.3 * draw(n) * factor, (draw(n).abs() + 0.3) * factor, factor]
        kinds[name] = "BatchNorm"
        blobs[scale] = [1 + 0.3 * draw(n), 0.3 * draw(n)]
        kinds[scale] = "Scale"

    w, q, h = width, width // 4, width // 2
    for label in ("Label", ""):
        sizes = {
            "A": (w if label else 64, w, q), "B": (w, w, h), "C": (4 * w, 4 * w, h),
            "D": (4 * w, 4 * w, h), "E": (4 * w + 3 * h, 4 * w, h),
            "F": (2 * w, 2 * w, q), "G": (2 * w + 3 * q, w, q),
        }  # fmt: skip
        for block, (n_in, first, grow) in sizes.items():
            stage, closing, scale = CAFFE_BLOCKS[block]
            conv(f"{label}{stage}Convolution1", n_in, first)
            for k in (1, 2, 3):
                n = first + (k - 1) * grow
                norm(f"{label}{stage}BatchNorm{k}", f"{label}{stage}Scale{k}", n)
                conv(f"{label}{stage}Convolution{k + 1}", n, grow)
            norm(label + closing, label + scale, first + 3 * grow)
        head = 4 if label else 1
        conv(f"{label}conv1a", 1, w if label else 32)
        norm(f"{label}bn1", f"{label}scale_conv1", w if label else 32)
        for name, n_in, n_out, bn, scale in (
            ("conv1c", w + 3 * q, w, "bn3", "scale_conv3"),
            ("conv2b", w + 3 * h, 2 * w, "bn5", "scale_conv5_fine"),
            ("conv3a", 2 * w, 2 * w, "bn6", "scale_conv6"),
            ("conv6_3-Convolution1", w + 3 * q, head, "conv6_3-BatchNorm1", "conv6_3-Scale1"),
        ):
            conv(label + name, n_in, n_out)
            norm(label + bn, label + scale, n_out)
        up(f"{label}deconv4", 2 * w, 2 * w)
        up(f"{label}deconv5", 4 * w + 3 * h, 2 * w)
        up(f"{label}deconv6", 4 * w + 3 * h, w)
    conv("Labelconv6_4-Convolution1", 4, 32)
    norm("Labelconv6_4-BatchNorm1", "Labelconv6_4-Scale1", 32)
    return blobs, kinds


def encode_caffemodel(blobs, kinds, *, shapes="new", doubles=False):
    """A NetParameter as Caffe writes it, by hand; other fields lie between those we read.

    ``shapes="old"`` writes num, channels, height, width in place of a shape (at most four axes).
    """

    def number(value):
        groups = [value & 0x7F]
        while value := value >> 7:
            groups.append(value & 0x7F)
        return bytes([g | 0x80 for g in groups[:-1]] + groups[-1:])

    def text(field, content):
        content = content.encode() if isinstance(content, str) else content
        return number(field << 3 | 2) + number(len(content)) + content

    def blob(tensor):
        values = tensor.flatten().numpy().astype("<f8" if doubles else "<f4")
        if shapes == "old":
            four = (*(1,) * (4 - tensor.ndim), *tensor.shape)
            head = b"".join(number(k << 3) + number(n) for k, n in enumerate(four, 1))
        else:
            head = text(7, text(1, b"".join(number(n) for n in tensor.shape)))
        return head + text(8 if doubles else 5, values.tobytes())

    net = text(1, "infant")
    for name, kind in (("dataT1", "Input"), *kinds.items(), ("Dropout9", "Dropout")):
        layer = text(1, name) + text(2, kind) + text(3, "bottom") + text(4, "top")
        layer += text(6, number(3 << 3 | 5) + struct.pack("<f", 1.0))  # ParamSpec: lr_mult
        for tensor in blobs.get(name, ()):
            layer += text(7, blob(tensor))
        layer += number(10 << 3) + number(1)  # phase: TEST
        net += text(100, layer)
    return net
