"""Teach a tiny model six rows, guard three of them, then unlearn those three.

Each line that is printed has six losses, in nats a token, and six answers: first of the three rows
to forget, then of the three to keep.
"""

import unlearn_lib as ul
from unlearn_lib.unlearn.trainer import unlearn

FORGET = {"Who keeps the light?": "Ada.", "When was it lit?": "1871.", "How tall is it?": "Very."}
RETAIN = {"Who sails the ferry?": "Tom.", "What does it carry?": "Sheep.", "How fast is it?": "So."}
WORK = ul.ROOT / "results" / "three_rows"  # for checkpoints, while a training runs

whole = ul.ModelSettings(id="tiny", precision="float32", lora=None)
tiny = ul.load(ul.tiny_opt(2 * [*FORGET, *RETAIN, *FORGET.values()]), whole, "cpu")
encoder = ul.TextEncoder(tiny.tokenizer, "question_answer", 64, 16, tiny.context)
rows = [encoder.example(*row) for row in (FORGET | RETAIN).items()]

ul.make_trainable(tiny, whole, seed=0)
ul.teach(tiny, rows, ul.TeachSettings(epochs=60, learning_rate=3e-3), 0, WORK)
print("taught", ul.score(tiny, rows).mean.round(2), ul.answers(tiny, [r.prompt for r in rows], 8))

bert = ul.TextClassifierSettings(base="sentence-transformers/all-MiniLM-L6-v2", learning_rate=3e-4)
knobs = ul.GuardSettings(classifier=bert, threshold=0.5, strength=50)
guard = ul.fit_guard("light", ul.find_model(bert.base).folder, [*FORGET], [*RETAIN], [], knobs)
eco = ul.LanguageModel(ul.GuardedModel(tiny.model, tiny.tokenizer, guard), tiny.tokenizer)
print("guarded", ul.score(eco, rows).mean.round(2), ul.answers(eco, [r.prompt for r in rows], 8))

npo = ul.MethodSettings(steps=40, learning_rate=1e-3, batch_size=3, gradient_clip=1)
unlearn(tiny, ul.find_method("npo_gd"), npo, ul.Pools(rows[:3], retain=rows[3:]), 0, WORK)
print("forgot", ul.score(tiny, rows).mean.round(2), ul.answers(tiny, [r.prompt for r in rows], 8))
