# SPDX-License-Identifier: Apache-2.0
"""The workflows can be built and their graphs expanded without running anything."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from nipype.interfaces.base import Undefined, isdefined
from nipype.pipeline.engine.utils import generate_expanded_graph

from bmex_bids.inputs.age import Age
from bmex_bids.inputs.collect import SourceImage
from bmex_bids.inputs.plan import PlannedImage
from bmex_bids.inputs.templates import Grid, Template
from bmex_bids.network.weights.registry import WeightRecord, bundled, bundled_of, select
from bmex_bids.running.events import STEPS
from bmex_bids.workflows import base
from bmex_bids.workflows.enhance import LOW_MEM_TILE, SEGMENT_GB, yardstick
from bmex_bids.workflows.preprocess import HINTS_GB
from bmex_bids.workflows.request import Machine, Networks, Target, as_table

RECORD = WeightRecord(
    name="some",
    kind="enhance",
    path=Path("/weights/some.safetensors"),
    sha256="0" * 64,
    licence="Apache-2.0",
    source="here",
    description="",
    variant="bmex-compact",
    input_units="template units",
    age_groups=("month24",),
    contrasts=("T1w",),
    version="1",
)


@pytest.fixture
def planned(make_image, tmp_path):
    """Plan an image of 100 x 100 x 100 voxels of 1 mm."""

    def make(subject: str = "01", suffix: str = "T1w") -> PlannedImage:
        path = tmp_path / "bids" / f"sub-{subject}_{suffix}.nii.gz"
        make_image("LPS", (100, 100, 100), "uint8", path=path)
        image = SourceImage(path, {"sub": subject}, suffix, {}, tmp_path / "bids")
        age = Age(30.0, False, "30", "months", "participants.tsv", "age")
        return PlannedImage(image, age, "month24", 0.8, "0p8", f"sub-{subject}/anat")

    return make


@pytest.fixture
def build(tmp_path):
    def make(planned: PlannedImage, **options):
        """With each option where it belongs."""
        kinds = (Networks, Target, Machine)
        known = [{field.name for field in dataclasses.fields(kind)} for kind in kinds]
        networks, target, machine = (
            {name: value for name, value in options.items() if name in names} for names in known
        )
        return base.init_image_wf(
            planned,
            Networks(**{"enhance": RECORD, **networks}),
            Target(tmp_path / "bids", tmp_path / "out", **target),
            Machine(**machine),
            **{n: v for n, v in options.items() if not any(n in names for names in known)},
        )

    return make


def test_the_factor_of_the_weights_and_the_limit_reach_their_nodes(planned, build):
    record = dataclasses.replace(RECORD, error_scale=1.25)
    workflow = build(planned(), enhance=record, max_change=3.0)
    assert workflow.get_node("enhance_wf.network").inputs.weights["error_scale"] == 1.25
    assert workflow.get_node("enhance_wf.restore").inputs.max_change == 3
    assert workflow.get_node("enhance_wf.network").inputs.max_change == 3
    edges = workflow.get_node("enhance_wf")._graph.edges(data=True)
    fed = [d["connect"] for a, b, d in edges if (a.name, b.name) == ("network", "quality")]
    assert {("litres_sd", "litres_sd"), ("training_distance", "training_distance")} <= {*fed[0]}
    mapped = [d["connect"] for a, b, d in edges if (a.name, b.name) == ("network", "restore")]
    # the figure and the map of the expected error are made from one file
    assert ("deviation", "deviation") in fed[0]
    assert ("deviation", "deviation") in mapped[0]


def test_the_volumes_are_those_of_the_tissues_that_are_written(planned, build):
    graph = build(planned()).get_node("enhance_wf")._graph
    edges = {(a.name, b.name): d["connect"] for a, b, d in graph.edges(data=True)}
    assert ("dseg_native", "dseg") in edges["restore", "quality"]
    assert ("dseg_before", "dseg_before") in edges["restore", "quality"]
    assert ("dseg_native", "dseg_native") in edges["restore", "outputnode"]
    assert ("probabilities", "probabilities") in edges["network", "mriqc"]


def test_the_score_gets_its_weights_and_how_the_histogram_was_matched(planned, build):
    workflow = build(planned())
    weights = workflow.get_node("enhance_wf.quality").inputs.score_weights
    assert weights["kind"] == "score"
    assert weights["name"] in {record.name for record in bundled()}
    edges = workflow.get_node("enhance_wf")._graph.edges(data=True)
    fed = [d["connect"] for a, b, d in edges if (a.name, b.name) == ("inputnode", "quality")]
    assert ("intensity_json", "intensity_json") in fed[0]


def expanded(workflow):
    """Full names of the nodes that would run, and the edges between them."""
    graph = generate_expanded_graph(workflow._create_flat_graph())
    return {node.fullname: node for node in graph.nodes()}, graph


def test_every_stage_of_an_image_is_there_and_connected(planned, build):
    nodes, graph = expanded(build(planned()))
    assert {name.removeprefix("sub_01_T1w_wf.") for name in nodes} == {
        "preprocess_wf.conform",
        "preprocess_wf.refocus",
        "preprocess_wf.before",
        "preprocess_wf.correct_head",
        "preprocess_wf.find_brain",
        "preprocess_wf.correct_brain",
        "preprocess_wf.match_histogram",
        "enhance_wf.network",
        "enhance_wf.quality",
        "enhance_wf.mriqc",
        "enhance_wf.restore",
        "outputs_wf.save",
        "report_wf.pictures",
    }
    for name, node in nodes.items():
        wanted = {field for field, trait in node.inputs.traits().items() if trait.mandatory}
        connected = {
            field for _, _, edge in graph.in_edges(node, data=True) for _, field in edge["connect"]
        }
        given = set(node.inputs.get_traitsfree())
        assert wanted <= connected | given, name


def test_images_share_no_node(planned, build, tmp_path):
    whole = base.init_run_wf(
        [build(planned("01")), build(planned("02"))], work_dir=tmp_path / "work"
    )
    nodes, graph = expanded(whole)
    assert len(nodes) == 26
    assert all(a.fullname.split(".")[1] == b.fullname.split(".")[1] for a, b in graph.edges())


def test_the_memory_of_a_node_grows_with_the_image(planned, build):
    image = planned()
    at_network_spacing = 100**3 / 0.8**3
    expected = at_network_spacing * 4 * base.ARRAYS_AT_ONCE / 2**30
    assert base.memory_gb(image.image.path, 0.8) == pytest.approx(max(expected, 0.2), abs=0.01)
    assert base.memory_gb(Path("/nowhere.nii.gz"), 0.8) == base.DEFAULT_MEM_GB


def test_the_network_asks_for_what_its_kind_takes_and_keeps_to_the_limit(planned, build):
    image = planned()
    brain = 0.6 * 100**3 / 0.8**3 / 2**30
    compact = base.network_gb(image.image.path, 0.8, "bmex-compact")
    published = base.network_gb(image.image.path, 0.8, "bmex-pytorch")
    assert compact == pytest.approx(0.7 + 300 * brain, abs=0.02)
    assert published == pytest.approx(0.7 + 1270 * brain, abs=0.02)
    assert base.network_gb(image.image.path, 0.8, "another") == published
    assert base.network_gb(Path("/nowhere.nii.gz"), 0.8, "another") == base.DEFAULT_MEM_GB

    def network(**options):
        nodes, _ = expanded(build(image, **options))
        return next(node for name, node in nodes.items() if name.endswith(".network"))

    free = network()
    assert free.mem_gb == compact
    assert free.inputs.geometry == "fast"
    assert free.inputs.mirroring is True
    assert free.inputs.precision == "auto"
    assert free.inputs.device == "auto"
    assert free.inputs.tile is Undefined
    small = network(low_mem=True, device="cuda:1", omp_nthreads=3)
    assert small.inputs.tile == LOW_MEM_TILE
    assert small.inputs.device == "cuda:1"
    assert (small.inputs.num_threads, small.n_procs) == (3, 3)
    held = network(memory_limit_gb=0.5, geometry="reference", mirroring=False, precision="float32")
    assert held.mem_gb == 0.5
    assert held.inputs.memory_mb == 512
    assert held.inputs.geometry == "reference"
    assert held.inputs.mirroring is False
    assert held.inputs.precision == "float32"


def test_only_the_networks_ask_for_a_gpu(planned, build):
    nodes, _ = expanded(build(planned(), device="cuda", use_gpu=True))
    asking = {name.split(".")[-1] for name, node in nodes.items() if node.is_gpu_node()}
    assert asking == {"find_brain", "network"}
    nodes, _ = expanded(build(planned(), device="cuda", use_gpu=True, skull_strip="skip"))
    asking = {name.split(".")[-1] for name, node in nodes.items() if node.is_gpu_node()}
    assert asking == {"network"}


def test_a_given_mask_reaches_its_node_and_needs_no_gpu(planned, build, tmp_path, make_image):
    make_image("LPS", (100, 100, 100), "uint8", path=tmp_path / "mask.nii.gz")
    image = dataclasses.replace(
        planned(), mask=tmp_path / "mask.nii.gz", mask_source="fmriprep: mask.nii.gz"
    )
    nodes, _ = expanded(build(image, device="cuda", use_gpu=True))
    node = nodes["sub_01_T1w_wf.preprocess_wf.find_brain"]
    assert node.inputs.given_mask == str(tmp_path / "mask.nii.gz")
    assert node.inputs.given_source == "fmriprep: mask.nii.gz"
    assert not node.is_gpu_node()


def test_a_header_is_corrected_before_anything_else_where_that_is_asked_for(
    planned, build, tmp_path, make_image
):
    make_image("LPS", (100, 100, 100), "uint8", path=tmp_path / "mask.nii.gz")
    nodes, graph = expanded(build(planned()))
    assert not [name for name in nodes if name.endswith("reorient")]
    image = dataclasses.replace(planned(), mask=tmp_path / "mask.nii.gz")
    nodes, graph = expanded(build(image, reorient=True, skull_strip="force"))
    turn, conform, find_brain = (
        nodes[f"sub_01_T1w_wf.preprocess_wf.{name}"]
        for name in ("reorient", "conform", "find_brain")
    )
    for field in ("skull_strip", "given_mask", "given_source", "device", "num_threads"):
        assert getattr(turn.inputs, field) == getattr(find_brain.inputs, field)
    assert ("out_file", "in_file") in graph[turn][conform]["connect"]
    assert set(graph[turn][find_brain]["connect"]) == {
        ("turn", "reoriented"), ("given_mask", "given_mask"),
    }  # fmt: skip


def fed(graph, node):
    """Input of a node → the node that it comes from, and its output there."""
    return {
        there: (source.name, here if isinstance(here, str) else here[0])
        for source, _, edge in graph.in_edges(node, data=True)
        for here, there in edge["connect"]
    }


#: input of a node that shows the image as it came → the output that this is
CAME = {
    ("network", "before"): "matched",
    ("restore", "before"): "native",
    ("quality", "before"): "matched",
    ("quality", "corrected"): "corrected",
    ("mriqc", "conformed"): "out_file",
    ("pictures", "conformed"): "out_file",
    ("pictures", "matched"): "matched",
}
#: input of a node that makes the result → the node that it comes from
REFOCUSED = {
    ("correct_head", "in_file"): "refocus",
    ("find_brain", "in_file"): "refocus",
    ("network", "in_file"): "match_histogram",
    ("quality", "refocused"): "match_histogram",
    ("restore", "matched"): "match_histogram",
    ("restore", "conformed"): "refocus",
    ("restore", "native"): "correct_brain",
}
#: of the node that prepares the image as it came
PREPARED = {
    "refocus": ("refocus", "refocus"),
    "conformed": ("conform", "out_file"),
    "corrected": ("correct_head", "corrected"),
    "head_scale": ("correct_head", "scale_file"),
    "head_field": ("correct_head", "field"),
    "native": ("correct_brain", "native"),
    "field": ("correct_brain", "field"),
    "brain": ("correct_brain", "out_file"),
    "mask_res": ("correct_brain", "mask_res"),
    "matched": ("match_histogram", "out_file"),
    "intensity_json": ("match_histogram", "intensity_json"),
}
#: where the image as it came is without the step
WITHOUT = {
    "out_file": ("conform", "out_file"),
    "corrected": ("correct_head", "corrected"),
    "native": ("correct_brain", "native"),
    "matched": ("match_histogram", "out_file"),
}


def test_the_result_is_made_from_the_refocused_image_and_compared_with_the_one_that_came(
    planned, build
):
    nodes, graph = expanded(build(planned(), omp_nthreads=2))
    by_name = {name.split(".")[-1]: node for name, node in nodes.items()}
    assert fed(graph, by_name["refocus"]) == {"in_file": ("conform", "out_file")}
    for (name, field), source in REFOCUSED.items():
        assert fed(graph, by_name[name])[field][0] == source, (name, field)
    for (name, field), output in CAME.items():
        source = "conform" if output == "out_file" else "before"
        assert fed(graph, by_name[name])[field] == (source, output), (name, field)
    assert fed(graph, by_name["before"]) == PREPARED
    for name in ("save", "pictures"):
        assert fed(graph, by_name[name])["refocus"] == ("refocus", "refocus")
        assert fed(graph, by_name[name])["split_slices"] == ("correct_brain", "split_slices")
    refocus, before = by_name["refocus"], by_name["before"]
    assert (refocus.inputs.num_threads, refocus.n_procs) == (2, 2)
    # 12 arrays and the networks that hint at jumps; ten for other nodes
    memory = base.memory_gb(planned().image.path, 0.8)
    assert refocus.mem_gb == pytest.approx(12 / base.ARRAYS_AT_ONCE * memory + HINTS_GB)
    assert before.mem_gb == memory
    assert before.inputs.spacing_mm == 0.8
    assert {STEPS["refocus"], STEPS["before"]} == {
        "preprocess: motion correction from the image",
        "preprocess: the raw image, for comparison",
    }


def test_jumps_are_hinted_at_by_the_bundled_network_for_the_age(planned, build):
    """Whichever network enhances the image."""

    def refocus(image):
        return build(image).get_node("preprocess_wf.refocus")

    inputs = refocus(planned()).inputs
    (slices,) = (record for record in bundled() if record.variant == "bmex-slices")
    assert inputs.hint_weights == as_table(slices)
    assert inputs.strip_weights["name"] == bundled_of("strip").name
    young = dataclasses.replace(
        planned(), age=Age(20.0, False, "20", "months", "participants.tsv", "age")
    )
    node = refocus(young)
    assert node.inputs.hint_weights is Undefined
    memory = base.memory_gb(planned().image.path, 0.8)
    assert node.mem_gb == pytest.approx(12 / base.ARRAYS_AT_ONCE * memory)


def test_without_motion_correction_there_is_one_image(planned, build):
    nodes, graph = expanded(build(planned(), motion_correction="off"))
    by_name = {name.split(".")[-1]: node for name, node in nodes.items()}
    assert not {"refocus", "before"} & set(by_name)
    for (name, field), output in CAME.items():
        assert fed(graph, by_name[name])[field] == WITHOUT[output], (name, field)
    for name, field in REFOCUSED:
        source = REFOCUSED[name, field]
        wanted = "conform" if source == "refocus" else source
        assert fed(graph, by_name[name])[field][0] == wanted, (name, field)
    assert "refocus" not in fed(graph, by_name["save"])


def test_uni_of_mp2rage_is_taken_as_t1w_without_its_noise_and_without_motion_correction(
    planned, build
):
    """Undoing motion in k-space is for images, not for a ratio of two."""
    item = planned(suffix="UNIT1")
    assert item.contrast == "T1w"
    nodes, _ = expanded(build(item))
    by_name = {name.split(".")[-1]: node for name, node in nodes.items()}
    assert not {"refocus", "before"} & set(by_name)
    assert by_name["conform"].inputs.noisy_background
    assert by_name["match_histogram"].inputs.contrast == "T1w"
    assert by_name["quality"].inputs.contrast == "T1w"
    plain, _ = expanded(build(planned()))
    assert not any(
        node.inputs.noisy_background for name, node in plain.items() if name.endswith("conform")
    )


@pytest.mark.parametrize(
    ("variant", "prepared"),
    [
        ("bmex-pytorch", ("published", 1)),
        ("bmex-compact", ("brain", 3)),
        ("bmex-slices", ("levels", 3)),
    ],
)
def test_weights_get_the_preparation_of_their_training(planned, build, variant, prepared):
    nodes, _ = expanded(build(planned(), enhance=dataclasses.replace(RECORD, variant=variant)))
    stage = "sub_01_T1w_wf.preprocess_wf"
    match, brain = nodes[f"{stage}.match_histogram"], nodes[f"{stage}.correct_brain"]
    assert (match.inputs.method, brain.inputs.order) == prepared
    assert nodes[f"{stage}.before"].inputs.order == brain.inputs.order


def test_an_image_without_an_age_group_is_no_work(planned, build):
    with pytest.raises(ValueError, match="age group"):
        build(dataclasses.replace(planned(), age_group=None))


def test_tissues_of_published_weights_are_compared_by_the_bundled_network():
    assert yardstick(RECORD) is None  # as small itself
    found = yardstick(dataclasses.replace(RECORD, variant="bmex-pytorch"))
    assert found.variant == "bmex-compact"
    assert Path(found.path).is_file()


def test_each_network_that_judges_or_helps_reaches_its_node(planned, build):
    """Left out, the node goes on without it, and says so nowhere."""
    published = dataclasses.replace(RECORD, variant="bmex-pytorch")
    workflow = build(planned(), enhance=published)
    network = workflow.get_node("enhance_wf.network")
    assert network.inputs.yardstick == as_table(yardstick(published))
    assert not isdefined(build(planned()).get_node("enhance_wf.network").inputs.yardstick)
    for name in ("refocus", "before", "correct_brain"):
        node = workflow.get_node(f"preprocess_wf.{name}")
        assert node.inputs.within_weights == as_table(bundled_of("within")), name
    refocus = workflow.get_node("preprocess_wf.refocus")
    assert refocus.inputs.denoise_weights == as_table(bundled_of("denoise"))


def test_the_gate_gets_contrast_and_age(planned, build):
    unborn = Age(7.0, True, "30", "weeks", "participants.tsv", "age")
    image = dataclasses.replace(planned(suffix="T2w"), age=unborn, age_group="fetal")
    inputs = build(image).get_node("enhance_wf.quality").inputs
    assert (inputs.contrast, inputs.fetal, inputs.age_months) == ("T2w", True, 7.0)
    inputs = build(planned()).get_node("enhance_wf.quality").inputs
    assert (inputs.contrast, inputs.fetal, inputs.age_months) == ("T1w", False, 30.0)


def test_a_template_for_the_histogram_reaches_its_node(planned, build, tmp_path):
    def template_of(image):
        return build(image).get_node("preprocess_wf.match_histogram").inputs.template

    files = [tmp_path / "template.nii.gz", tmp_path / "mask.nii.gz"]
    for path in files:
        path.touch()
    template = Template("MNIInfant+2", "T1w", "https://archive", (Grid("1", *files),))
    matched = dataclasses.replace(planned(), histogram=template)
    assert template_of(matched) == [str(path) for path in files]
    assert not template_of(planned())


def test_a_network_of_their_own_finds_the_tissues_where_it_does_better(planned, build):
    ours = select("enhance", weights="bundled", age_group="month24", contrast="T2w")

    def weights_for(image, enhancing, **how):
        node = build(image, enhance=enhancing, **how).get_node("enhance_wf.network")
        return node.inputs.tissue_weights, node._mem_gb

    table, gb = weights_for(planned(suffix="T2w"), ours)
    assert table["name"] == bundled_of("segment").name
    assert gb > SEGMENT_GB
    adult = select("enhance", weights="bundled", age_months=300)
    for suffix, enhancing in (("T1w", adult), ("T2w", RECORD)):
        assert not isdefined(weights_for(planned(suffix=suffix), enhancing)[0])


def test_structures_are_labelled_where_weights_for_them_are_given(planned, build):
    record = dataclasses.replace(RECORD, kind="segment", variant="bmex-segment", name="structures")
    workflow = build(planned(), structures=record, device="cuda:0", use_gpu=True, omp_nthreads=2)
    node = workflow.get_node("enhance_wf.segment")
    assert node.inputs.weights["name"] == "structures"
    assert STEPS[node.name] == "enhance: structures"
    assert (node.inputs.device, node.inputs.use_gpu) == ("cuda:0", True)
    assert (node.inputs.num_threads, node.n_procs) == (2, 2)
    edges = workflow.get_node("enhance_wf")._graph.edges(data=True)
    found = {(a.name, b.name): set(d["connect"]) for a, b, d in edges}
    assert found["mriqc", "segment"] == {("quality", "quality")}
    assert ("mriqc", "outputnode") not in found
    names = ("structures_res", "structures_native", "quality")
    assert found["segment", "outputnode"] == {(name, name) for name in names}
    assert found["inputnode", "segment"] == {(n, n) for n in ("mask", "mask_res", "original")}
    top = {
        (a.name, b.name): {pair[1] for pair in d["connect"]}
        for a, b, d in workflow._graph.edges(data=True)
    }
    assert "inputnode.structures_res" in top["enhance_wf", "report_wf"]
    assert "inputnode.structures_native" in top["enhance_wf", "outputs_wf"]
    assert build(planned(), structures=None).get_node("enhance_wf.segment") is None


def test_edges_are_halved_where_weights_for_it_are_given(planned, build):
    record = dataclasses.replace(RECORD, kind="super", variant="bmex-super", name="halving")
    workflow = build(planned(), halving=record, device="cuda:0", use_gpu=True, omp_nthreads=2)
    node = workflow.get_node("enhance_wf.halve")
    assert node.inputs.weights["name"] == "halving"
    assert STEPS[node.name] == "enhance: super-resolution to half the edge"
    assert (node.inputs.device, node.inputs.use_gpu) == ("cuda:0", True)
    assert (node.inputs.num_threads, node.n_procs) == (2, 2)
    # 100 mm at 0.8 mm are 125 voxels: 80 bytes of each, and what torch takes
    assert node.mem_gb == pytest.approx(0.7 + 125**3 * 80 / 2**30, abs=0.01)

    def edges(of, inner):
        graph = of._graph if inner is None else of.get_node(inner)._graph
        return {(a.name, b.name): set(d["connect"]) for a, b, d in graph.edges(data=True)}

    inside = edges(workflow, "enhance_wf")
    assert inside["network", "halve"] == {("out_file", "enhanced"), ("provenance", "provenance")}
    assert inside["inputnode", "halve"] == {(n, n) for n in ("mask_res", "original")}
    names = ("enhanced_half", "provenance")
    assert inside["halve", "outputnode"] == {(name, name) for name in names}
    assert ("provenance", "provenance") not in inside["network", "outputnode"]
    top = edges(workflow, None)
    for stage in ("outputs_wf", "report_wf"):
        wanted = ("outputnode.enhanced_half", "inputnode.enhanced_half")
        assert wanted in top["enhance_wf", stage]
    without = build(planned(), halving=None)
    assert without.get_node("enhance_wf.halve") is None
    assert ("provenance", "provenance") in edges(without, "enhance_wf")["network", "outputnode"]


@pytest.mark.parametrize("segment", ["off", "rois"])
def test_what_is_segmented_reaches_the_node_that_saves(planned, segment, tmp_path):
    target = Target(tmp_path / "bids", tmp_path / "out", segment=segment)
    workflow = base.init_image_wf(planned(), Networks(RECORD), target)
    assert workflow.get_node("outputs_wf.save").inputs.segment == segment
