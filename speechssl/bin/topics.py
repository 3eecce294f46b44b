"""`speechssl topics fit | apply | show`: topics of utterances, from their pseudo-labels."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechssl.bin.actions import Action, run_action
from speechssl.labels.topic_config import ApplyConfig, FitConfig, ShowConfig

if TYPE_CHECKING:
    import numpy as np

    from speechssl.labels.topic_documents import Documents, Vocabulary
    from speechssl.labels.topic_fit import FitResult
    from speechssl.labels.topic_measure import Field

POSTERIOR_STEPS = 65535
"""A posterior of 1, as it is stored."""


def main(argv: list[str] | None = None) -> int:
    actions: dict[str, Action] = {
        "fit": (FitConfig, "learn topics of documents whose words are sequences of units", fit),
        "apply": (
            ApplyConfig,
            "write each utterance's topic, and posterior, as utterance labels",
            apply,
        ),
        "show": (
            ShowConfig,
            "what topics tell of speaker, gender, language, words and so on",
            show,
        ),
    }
    return run_action(
        "topics",
        "Topics of utterances (latent Dirichlet allocation over their pseudo-labels).",
        actions,
        argv,
    )


def fit(config: FitConfig) -> None:
    """Count words, learn topics, measure and save them; a killed fit goes on where it was."""
    from speechssl.data.label_store import LabelStore
    from speechssl.labels.stream import say
    from speechssl.labels.topic_documents import DocumentIndex, Documents, build_vocabulary
    from speechssl.labels.topic_fit import fit_topics
    from speechssl.labels.topic_model import load_topics, require_sklearn, save_topics

    require_sklearn()
    store = LabelStore.open(config.labels)
    output = Path(config.output)
    identity = _identity(config, store)
    if (output / "topics.json").is_file():
        if load_topics(output).info.get("fit") != identity:
            raise ValueError(
                f"output: found topics of other options in {output}, want an empty folder; "
                "choose another, or remove it"
            )
        say(f"{output} holds these topics already")
        return
    output.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    index = DocumentIndex.build(store, config.cuts, config.group)
    documents = Documents(store, index, config.ngrams, config.collapse)
    vocabulary, read = build_vocabulary(documents, config)
    say(
        f"{len(documents)} documents, {read['tokens']} words, {len(vocabulary)} different ones "
        f"within the limits ({100 * read['tokens_covered']:.1f} % of all)"
    )
    counted = time.monotonic()
    info = {
        "unit_classes": store.classes,
        **{k: getattr(config, k) for k in ("collapse", "weighting", "group", "seed")},
        "ngrams": documents.ngrams,
        "topic_prior": config.topic_prior or 1 / config.topics,
        "word_prior": config.word_prior or 1 / config.topics,
        "units": {k: store.meta.get(k) for k in ("name", "codebook_hash", "source", "layer")},
        "fit": identity,
    }
    state = output / "state.npz"
    _forget_other(state, identity)
    result = fit_topics(documents, vocabulary, config, info, state_path=state, log=say)
    learnt = time.monotonic()
    seconds = {"count": counted - started, "learn": learnt - counted}
    read |= {"utterances": len(index.starts), "unlabelled": index.unlabelled}
    report = _fit_report(config, documents, vocabulary, result, {**read, "seconds": seconds})
    from speechssl.labels.sample_file import write_json

    write_json(output / "fit.json", report)
    save_topics(output, result.model)
    state.unlink(missing_ok=True)
    state.with_suffix(".json").unlink(missing_ok=True)
    say(
        f"{output}: {config.topics} topics ({len(result.empty)} empty), perplexity "
        f"{result.perplexity[-1]:.2f}, coherence {report['coherence']:.3f} (all top words "
        f"{report['coherence_baseline']:.3f}), {learnt - counted:.1f} s"
    )


def _identity(config: FitConfig, store: Any) -> dict[str, Any]:
    """What decides the topics; compared when a fit finds earlier work in its folder."""
    kept = dataclasses.asdict(config)
    for name in ("output", "jobs", "labels"):
        del kept[name]
    units = {k: store.meta.get(k) for k in ("codebook_hash", "num_ids", "num_labels")}
    return json.loads(json.dumps({**kept, "units": units}))


def _forget_other(state: Path, identity: dict[str, Any]) -> None:
    """Remove the state of a killed fit of other options; say whose state is to follow."""
    from speechssl.labels.sample_file import write_json

    note = state.with_suffix(".json")
    if not note.is_file() or json.loads(note.read_text()) != identity:
        state.unlink(missing_ok=True)
        write_json(note, identity)


def _fit_report(
    config: FitConfig,
    documents: Documents,
    vocabulary: Vocabulary,
    result: FitResult,
    read: dict[str, Any],
) -> dict[str, Any]:
    import numpy as np

    from speechssl.labels.quality import usage as class_usage
    from speechssl.labels.topic_documents import unit_sequence
    from speechssl.labels.topic_measure import coherence, top_words

    each, baseline = coherence(result.model, documents, config.coherence_words)
    known = result.labels[result.labels >= 0]
    counts = np.bincount(known, minlength=config.topics)
    shares = result.model.word_shares
    classes = documents.store.classes
    tops = top_words(result.model, config.coherence_words)
    return {
        "perplexity": result.perplexity,
        "repairs": result.repairs,
        "empty_topics": result.empty,
        "documents_of_topic": counts.tolist(),
        "topics_used": class_usage(counts)["perplexity"],
        "posterior_entropy": float(result.entropy[result.labels >= 0].mean()),
        "largest_entropy": float(np.log(config.topics)),
        "without_words": int((result.labels < 0).sum()),
        "coherence": float(each.mean()),
        "coherence_baseline": baseline,
        "topics": [
            {
                "coherence": float(each[t]),
                "words": [
                    {
                        "units": unit_sequence(int(vocabulary.codes[w]), classes, documents.ngrams),
                        "share": float(shares[t, w]),
                    }
                    for w in tops[t]
                ],
            }
            for t in range(config.topics)
        ],
        **read,
    }


def apply(config: ApplyConfig) -> None:
    """Write the topic of each utterance's document; utterances that have one are kept."""
    import numpy as np

    from speechssl.data.label_store import LabelStore, LabelWriter
    from speechssl.labels.quality import usage as class_usage
    from speechssl.labels.sample_file import write_json
    from speechssl.labels.stream import say
    from speechssl.labels.topic_documents import DocumentIndex, Documents
    from speechssl.labels.topic_model import load_topics, require_sklearn

    require_sklearn()
    model = load_topics(config.topics)
    store = LabelStore.open(config.labels)
    _check_units(model.info, store)
    group = config.group or model.info["group"]
    index = DocumentIndex.build(store, config.cuts, group, keep_ids=True)
    documents = Documents(store, index, model.info["ngrams"], model.info["collapse"])
    meta = {
        "frame_rate_hz": 0,
        "codebook_hash": model.hash,
        "source": store.meta.get("codebook_hash"),
        "group": group,
    }
    writers = [LabelWriter(config.output, {"classes": model.topics, **meta})]
    if config.posteriors:
        more = {"classes": POSTERIOR_STEPS + 1, "values": model.topics}
        writers.append(LabelWriter(config.posteriors, {**more, **meta}))
    counts = np.zeros(model.topics, np.int64)
    entropy, without = 0.0, []
    assert index.ids is not None
    for numbers in documents.batches(config.batch_documents):
        words = documents.counts(numbers, model.vocabulary.codes)
        shares = model.posteriors(words, config.jobs)
        for row, number in enumerate(numbers):
            ids = index.ids[index.bounds[number] : index.bounds[number + 1]]
            if words.indptr[row] == words.indptr[row + 1]:
                without += ids
                continue
            topic = int(shares[row].argmax())
            counts[topic] += len(ids)
            entropy -= len(ids) * float((shares[row] * np.log(shares[row])).sum())
            values = [topic, np.rint(shares[row] * POSTERIOR_STEPS).astype(np.int64)]
            for writer, value in zip(writers, values):
                for name in ids:
                    if name not in writer:
                        writer.add(name, value)
    for writer in writers:
        writer.finish()
    done = int(counts.sum())
    report = {
        "utterances": done,
        "documents": len(documents),
        "utterances_of_topic": counts.tolist(),
        "topics_used": class_usage(counts)["perplexity"],
        "posterior_entropy": entropy / max(done, 1),
        "unlabelled": index.unlabelled,
        "without_words": sorted(without),
    }
    write_json(Path(config.output) / "apply.json", report)
    say(
        f"{config.output}: {done} utterances of {len(documents)} documents, "
        f"{report['topics_used']:.1f} topics used (perplexity), {index.unlabelled} cuts without "
        f"units, {len(without)} without a word of the vocabulary"
    )


def _check_units(info: Any, store: Any) -> None:
    found = store.classes, store.meta.get("codebook_hash")
    wanted = info["unit_classes"], info["units"].get("codebook_hash")
    if found != wanted:
        raise ValueError(
            f"labels: found {found[0]} units of codebook {found[1]} in {store.folder}, want those "
            f"of the fit: {wanted[0]} of {wanted[1]}; topics know the words of one clustering only"
        )


def show(config: ShowConfig) -> None:
    """Association of topics with each field, as a table, JSON and a picture."""
    import numpy as np

    from speechssl.data.label_store import LabelStore
    from speechssl.labels.sample_file import write_json
    from speechssl.labels.topic_measure import association, listing, table
    from speechssl.report.topics import association_svg

    if not (Path(config.topics) / "meta.json").is_file():
        raise ValueError(
            f"topics: found no label store in {config.topics}, want the output of `speechssl "
            "topics apply`"
        )
    store = LabelStore.open(config.topics)
    fields, topic_of, strata, seen = _collect(config, store)
    counts = np.bincount(topic_of, minlength=store.classes)
    rows, topics = {}, [{"documents": int(n), "fields": {}} for n in counts]
    for name, field in fields.items():
        rows[name] = association(
            field,
            topic_of,
            store.classes,
            strata=strata,
            permutations=config.permutations,
            seed=config.seed,
        )
        values = sorted(field.names, key=lambda v, names=field.names: names[v])
        found = listing(field.joint(topic_of, store.classes), values, config.listed)
        for topic, values_of in zip(topics, found):
            topic["fields"][name] = values_of
    output = Path(config.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    report = {
        "associations": rows,
        "topics": topics,
        "classes": store.classes,
        "documents": len(topic_of),
        **seen,
        "permutations": config.permutations,
        "within": config.within,
        "topics_hash": store.meta.get("codebook_hash"),
    }
    write_json(output, report)
    temporary = output.with_suffix(".svg.tmp")
    temporary.write_text(association_svg(rows, standalone=True), encoding="utf-8")
    temporary.replace(output.with_suffix(".svg"))
    print(table(rows))
    if seen["without_topic"]:
        print(f"{seen['without_topic']} cuts have no topic in {config.topics}")


def _collect(
    config: ShowConfig, store: Any
) -> tuple[dict[str, Field], np.ndarray, np.ndarray, dict[str, int]]:
    """Fields with values, the topic and the stratum of each document, and counts of cuts."""
    import numpy as np

    from speechssl.labels.cuts import read_cuts
    from speechssl.labels.topic_documents import group_name
    from speechssl.labels.topic_measure import FIELDS, Field, field_values

    if store.frame_rate_hz or store.values != 1:
        raise ValueError(
            f"topics: found a store of {store.frame_rate_hz:g} labels per second and "
            f"{store.values} values in {store.folder}, want the output of `speechssl topics apply`"
        )
    fields = {name: Field() for name in config.fields or FIELDS}
    group = store.meta.get("group", "utterance")
    number: dict[str, int] = {}
    topics: list[int] = []
    strata: list[str] = []
    cuts = without = 0
    for cut in read_cuts(config.cuts):
        cuts += 1
        if cut.id not in store:
            without += 1
            continue
        name = group_name(cut, group)
        if name not in number:
            number[name] = len(topics)
            topics.append(store.value(cut.id))
            strata.append(", ".join(field_values(cut, config.within)) if config.within else "")
        for field, pairs in fields.items():
            pairs.add(number[name], field_values(cut, field))
    if "words" in fields:
        fields["words"] = fields["words"].without_rare(config.min_word_utterances)
    found = {name: field for name, field in fields.items() if len(field.names) > 1}
    absent = [name for name in config.fields if name not in found]
    if absent or not found:
        raise ValueError(
            f"fields: found no two values of {', '.join(absent or fields)} in the {cuts - without} "
            "cuts that have a topic, want at least two; leave these out, or give cuts that hold "
            "them"
        )
    if config.within and not any(strata):
        raise ValueError(
            f"within: found no {config.within} in the {cuts - without} cuts that have a topic, "
            "want a field that they hold"
        )
    strata_of = np.unique(np.array(strata), return_inverse=True)[1]
    return found, np.array(topics), strata_of, {"cuts": cuts, "without_topic": without}


if __name__ == "__main__":
    sys.exit(main())
