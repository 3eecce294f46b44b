"""A label store of the speakers of some cuts: 0 to N - 1 of the training cuts, N for all others."""

from __future__ import annotations

import argparse

from speechssl.data.fields import field_values, write_class_labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", required=True, help="cuts whose speakers count")
    parser.add_argument("--valid", required=True, help="cuts of other speakers")
    parser.add_argument("--output", required=True, help="folder of the store")
    parser.add_argument("--number", required=True, help="file for N")
    options = parser.parse_args()
    names = field_values([options.train], "speaker")
    speakers = sorted(set(names.values()))
    for cut, name in field_values([options.valid], "speaker").items():
        names[cut] = name if name in speakers else ""
    write_class_labels(options.output, names, [*speakers, ""], "speaker")
    with open(options.number, "w") as file:
        file.write(f"{len(speakers)}\n")


if __name__ == "__main__":
    main()
