"""What the report says, in each language: tables with the same keys.

{name} in a text is a value that the report puts in. KEY_one is said instead of KEY where n is 1.
Standard library only.
"""

from typing import Any, Dict, Mapping

ENGLISH_TEXTS: Dict[str, str] = {
    # the head
    "title": "TResNet on Ascend: report",
    "brand": "TResNet on Ascend · report",
    "brand_of": "TResNet on Ascend · report of {when}",
    "state_measured": "measured",
    "state_minimums": "all minimums reached",
    "state_look": "worth a look",
    "state_bad": "below a minimum",
    "the_network": "The network",
    "on_cpu": "{network} on the CPU",
    "on_card": "{network} on {chip}",
    "card": "card",
    "right_answers": "{subject} gives the right answer for {share} of {n:,} images",
    "right_answers_one": "{subject} gives the right answer for {share} of {n:,} image",
    "was_evaluated": "{subject} was evaluated on {n:,} images",
    "was_evaluated_one": "{subject} was evaluated on {n:,} image",
    "and_speed": "{sentence} and classifies {speed} images a second",
    "full_stop": "{sentence}.",
    "sample_note": (
        "The sample checkpoint was fitted to these 20 photos: its accuracy proves that the chain "
        "is right, and says nothing about TResNet's."
    ),
    "sample_prepared_otherwise": (
        "The sample checkpoint was fitted to these 20 photos as it says they are prepared, and "
        "this run prepares them otherwise: the accuracy proves nothing."
    ),
    # points
    "same_answer_for": "{second} and {first} give the same answer for {share} of {n:,} images",
    "same_answer_for_one": "{second} and {first} give the same answer for {share} of {n:,} image",
    "published_within": ("Top-1 is within the 95 % interval of the figure published for {name}"),
    "published_not_within": (
        "Top-1 is not within the 95 % interval of the figure published for {name}"
    ),
    "likely_cause": "{sentence}; likely cause: {cause}",
    "lineage_assumed": (
        "the checkpoint does not show the lineage of its weights clearly; {lineage} was assumed, "
        "and if that is wrong, so is every figure"
    ),
    "claimed_same": (
        "Top-{k}: the checkpoint says {claimed} ({said}{about}), and {n} images give the same "
        "(95 % interval {low} to {high} %)"
    ),
    "claimed_same_one": (
        "Top-{k}: the checkpoint says {claimed} ({said}{about}), and {n} image gives the same "
        "(95 % interval {low} to {high} %)"
    ),
    "claimed_within": (
        "Top-{k}: the checkpoint says {claimed} ({said}{about}), measured {measured} on "
        "{n} images: "
        "{points} points, which chance explains (95 % interval {low} to {high} %)"
    ),
    "claimed_within_one": (
        "Top-{k}: the checkpoint says {claimed} ({said}{about}), measured {measured} on "
        "{n} image: "
        "{points} points, which chance explains (95 % interval {low} to {high} %)"
    ),
    "claimed_outside": (
        "Top-{k}: the checkpoint says {claimed} ({said}{about}), measured {measured} on "
        "{n} images: "
        "{points} points, which chance does not explain (95 % interval {low} to {high} %); "
        "compare images, labels, preparation and lineage with those of training"
    ),
    "claimed_outside_one": (
        "Top-{k}: the checkpoint says {claimed} ({said}{about}), measured {measured} on "
        "{n} image: "
        "{points} points, which chance does not explain (95 % interval {low} to {high} %); "
        "compare images, labels, preparation and lineage with those of training"
    ),
    "claimed_other_weights": ", of other weights in the same file (see --ema)",
    "claimed_best": ", the best of its training",
    "claim_remark": "the checkpoint says {remark}",
    "gate": "{what}: {measured}, the minimum is {least}",
    "gate_top1": "Top-1 accuracy",
    "gate_top5": "Top-5 accuracy",
    "gate_throughput": "throughput",
    "gate_cosine": "lowest cosine similarity",
    "not_measured": "not measured",
    "images_per_s": "images/s",
    "spread_wide": (
        "the throughput varied by ± {spread} between the runs at batch size {batch}: something "
        "else used the processor or the card, so measure again when nothing else runs"
    ),
    "note_all_equal": (
        "all {n} results are the same: the network's answer does not depend on the image, so the "
        "inference is wrong, or all images are one"
    ),
    "note_orders": (
        "Top-1 is {top1}% with the class folders in {order} order, as {who} numbers them, and "
        "{other_top1}% in {other} order, as {other_who} does (--class-order {other})"
    ),
    "note_background": (
        'of {classes} classes class 0 is taken for "background", so each label is one lower than '
        "its class: Top-1 is {top1}%, and {other_top1}% with --label-offset {other}"
    ),
    "note_no_background": (
        'of {classes} classes class 0 is not taken for "background", so each label is its class: '
        "Top-1 is {top1}%, and {other_top1}% with --label-offset {other}"
    ),
    "note_chance": (
        "Top-1 is at the level of chance: usually the labels are numbered otherwise than the "
        "network's classes (from 1, or in another order), or the images were prepared otherwise "
        "than in training"
    ),
    "note_subset": "{n} of {labelled} labelled names have no prediction: this is a subset",
    "note_left_out": "{n} of {images} images were left out",
    "note_clipped_white": (
        "{n} images of mode {mode} are clipped to white: their values above 255 become 255, as in "
        "Pillow and timm; make 8-bit images of them if the training had such"
    ),
    "note_clipped_white_one": (
        "{n} image of mode {mode} is clipped to white: its values above 255 become 255, as in "
        "Pillow and timm; make 8-bit images of them if the training had such"
    ),
    "note_clipped_black": (
        "{n} images of mode {mode} are clipped to black: their values of at most 1, or below 0, "
        "become 0 or 1 of 255, as in Pillow and timm; make 8-bit images of them if the training "
        "had such"
    ),
    "note_clipped_black_one": (
        "{n} image of mode {mode} is clipped to black: its values of at most 1, or below 0, "
        "become 0 or 1 of 255, as in Pillow and timm; make 8-bit images of them if the training "
        "had such"
    ),
    # cards
    "interval": "95 % interval {low} to {high} %",
    "named_value": "{name}: {value}",
    "checkpoint_says": "the checkpoint says {value}",
    "published_for": "published for {name}: {value}",
    "mean_average_precision": "Mean average precision",
    "throughput": "Throughput",
    "at_batch_size": "at batch size {batch}",
    "spread_of_runs": "± {spread} between {n:,} runs",
    "published_speed": "published: {speed} images/s, ratio {ratio}",
    "latency": "Latency",
    "latency_mean_of_batch": "mean of a batch, at batch size {batch}",
    "latency_99": "99 % are quicker than {latency} ms",
    "macro_f1": "Macro F1",
    "macro_f1_about": "the mean over all classes, each counts the same",
    "calibration_error": "Calibration error",
    "calibration_error_about": "how far confidence and accuracy are apart, on average",
    # navigation
    "on_this_page": "On this page",
    "nav_speed": "Speed",
    "nav_comparison": "Comparison",
    "nav_mistakes": "Mistakes",
    "nav_confusion": "Confusion",
    "nav_classes": "Classes",
    "nav_calibration": "Calibration",
    "nav_run": "What was run",
    # speed
    "speed_lead": "Pure inference on {chip}: zeros in, no files. {runs}",
    "speed_median": "Each figure is the median of {repeat} runs of {n:,} batches.",
    "speed_median_one": "Each figure is the median of {repeat} runs of 1 batch.",
    "speed_median_range": (
        "Each figure is the median of {repeat} runs; a run has {least} to {most} batches, fewer "
        "where a batch takes long."
    ),
    "speed_once_range": "One run of {least} to {most} batches, fewer where a batch takes long.",
    "speed_once": "One run of {n:,} batches.",
    "speed_once_one": "One run of 1 batch.",
    "batch_size": "batch size",
    "spread": "spread",
    "published": "published",
    "ratio": "ratio",
    "latency_mean_ms": "latency, mean, ms",
    "latency_99_ms": "99 %, ms",
    "all_chips": "All {n:,} chips at once",
    "all_chips_lead": (
        "The first table is of one chip alone. Together chips may wait for each other."
    ),
    "images_per_s_at_once": "images/s, all at once",
    "sum_of_each": "sum of each alone",
    "lost": "lost",
    # the forecast of the speed
    "expected": "Expected on a card",
    "expected_lead": (
        "Images a second on one Ascend {chip}, forecast from the network’s layers. This is not a "
        "measurement. It is {limits}."
    ),
    "forecast": "forecast",
    "forecast_range": "80 % range",
    "from_to": "{low} to {high}",
    "measured_to_forecast": "measured / forecast",
    "card_fast": (
        "The card is as fast as networks of this kind run there: {low} to {high} times the "
        "forecast."
    ),
    "card_fast_one": (
        "The card is as fast as networks of this kind run there: {low} times the forecast."
    ),
    "card_slow": (
        "The card is slower than networks of this kind run there: {measured} images/s at batch "
        "size {batch}, and 95 % of them reach {reach}."
    ),
    "card_is": "The card is {verdict}.",
    "look_at": "Look at:",
    "semicolon": "; ",
    # comparison
    "against": "{second} against {first}",
    "the_card": "the card",
    "the_card_int8": "the card, int8,",
    "compared_lead": "The same {n:,} images, each by both.",
    "compared_lead_one": "1 image, by both.",
    "same_answer": "same answer",
    "changed_answers": "changed",
    "changed_counts": "{right} became right, {wrong} became wrong, {other} wrong before and after",
    "cosine_similarity": "cosine similarity",
    "cosine_facts": "{least} at least ({image}), {mean} on average",
    "largest_difference": "largest difference",
    "in_a_score": "{value} in a score",
    "int8_weights": "weights of {bits} bits",
    "int8_speed": "speed",
    "int8_speed_words": (
        "{int8} images/s, float32 {float32}: {ratio} times as fast ({low} to {high}), measured in "
        "turns"
    ),
    "int8_loses": "loses {points} points of Top-1",
    "int8_gains": "gains {points} points of Top-1",
    "int8_nothing": "nothing",
    "int8_promise": "{change} (95 % interval of the loss {low} to {high}); put back: {back}",
    "int8_slower": "int8 is slower than float32 on this CPU: use float32",
    "forecast_for_float16": "forecast for float16",
    "forecast_facts": "cosine {cosine} at least, same answer for {share} %",
    "answer_changed": "Images whose answer changed",
    "answer_changed_one": "The image whose answer changed",
    "answer_changed_first": "Images whose answer changed: the first {shown:,} of {n:,}",
    "changed_in_file": "All of them: the rows with “yes” in the column “changed” of {file}.",
    "image_changed": "image whose answer changed",
    # forecast
    "forecast_title": "Forecast for float16",
    "forecast_lead": (
        "What float16 does to each operator, computed on the CPU over {n:,} images. {overflow}"
    ),
    "forecast_lead_one": (
        "What float16 does to each operator, computed on the CPU over 1 image. {overflow}"
    ),
    "too_large": "Too large for float16: {names}.",
    "nothing_too_large": "Nothing is too large for it.",
    "operator": "operator",
    "type": "type",
    "largest_value": "largest value",
    "cosine": "cosine",
    # mistakes
    "mistakes": "Mistakes",
    "mistakes_lead": (
        "{n:,} wrong answers in all. First come the ones that the network was surest of: often "
        "they show a wrong label or two names for one thing. The pictures are what the network "
        "sees."
    ),
    "mistakes_lead_one": "1 wrong answer in all. The picture is what the network sees.",
    "wrong_image": "wrongly answered image",
    "no_picture": "no picture",
    "is": "is",
    "taken_for": "taken for",
    "probability": "probability",
    "all_mistakes": "All mistakes by right class",
    "surest_mistakes": "The {n:,} surest mistakes by right class",
    "in_files": "Every image is in {predictions}, every class in {classes}.",
    "mistakes_of_class": "{name}: {n:,} wrong of {images:,}",
    "image": "image",
    # confusion
    "confusion": "Confusion",
    "confusion_lead": (
        "Each row is a right class, each column an answer. The stronger a cell’s colour, the "
        "larger its share of the row; the numbers are images. On the diagonal the answers are "
        "right."
    ),
    "confusion_words": "Confusion matrix: a row for each right class, a column for each answer.",
    "confusion_rows": "right class",
    "confusion_columns": "answer",
    "confused_pairs": "The most confused classes",
    "confused_first": "The {shown:,} most confused pairs of classes of {n:,}",
    "right_class": "right class",
    "images": "images",
    # classes
    "classes": "Classes",
    "classes_all": "All {n:,} classes that have images, the lowest Top-1 first.",
    "classes_all_one": "The only class that has images.",
    "classes_lowest": "The {shown:,} classes with the lowest Top-1 of {n:,}.",
    "classes_sort": "A click on a heading sorts.",
    "classes_averages": (
        "Mean over the classes (macro): precision {precision}, recall {recall}, F1 {f1}; weighted "
        "by images: {weighted_precision}, {weighted_recall}, {weighted_f1}."
    ),
    "find_class": "find a class",
    "class": "class",
    "class_number": "class {number}",
    "recall": "Top-1 = recall",
    "precision": "precision",
    "most_taken_for": "most taken for",
    "on_paper": "On paper: the first 30 classes; the file has them all.",
    # calibration
    "calibration": "Calibration",
    "calibration_lead": (
        "Can one believe the network’s probabilities? The expected calibration error over 15 bins "
        "is {error}: by so much confidence and accuracy are apart, on average."
    ),
    # what was run
    "what_was_run": "What was run",
    "checkpoint": "checkpoint",
    "network": "network",
    "lineage": "{name} lineage",
    "classes_count": "{n:,} classes",
    "classes_count_one": "{n:,} class",
    "pixels": "{size}×{size} pixels",
    "preparation": "preparation",
    "data": "data",
    "labels": "labels",
    "count_labelled": "{count} labelled",
    "count_images": "{count} images",
    "count_preprocessed": "{count} preprocessed",
    "count_bad": "{count} bad",
    "count_inferred": "{count} inferred",
    "count_evaluated": "{count} evaluated",
    "count_left_out": "{count} left out",
    "ran_on": "ran on",
    "ran_on_cpu": "this machine's CPU, with ONNX Runtime; no Ascend card",
    "ran_on_card": "{chip}, with ais_bench",
    "chip": "chip",
    "versions": "versions",
    "this_program": "this program",
    "began": "began",
    "took": "took",
    "time": "Time",
    "step": "step",
    "kept": "kept",
    "kept_made_in": "kept (made in {time})",
    "commands": "Commands",
    "left_out": "Images that were left out",
    "why": "why",
    "more_left_out": "and {n:,} more, all in acc_report.json.",
    "footer": (
        "Made by TResNet on Ascend, version {version}. One file: nothing is loaded from anywhere. "
        "All figures are also in the files beside it: {files}."
    ),
    "list_separator": ", ",
    # captions of plots
    "caption_speed": "Throughput at each batch size",
    "caption_latency": "Latency of a whole batch",
    "caption_cosines": "How far the scores of an image are apart",
    "caption_reliability": (
        "Bars above the diagonal: the network is right more often than it says; below: less often."
    ),
    "caption_confidences": "How sure the network was, for right and for wrong answers.",
    "caption_coverage": "If only the surest answers are given: how many of them are right.",
    # words in plots
    "plot_speed": "Bars: images per second at each batch size; the table has the figures.",
    "plot_latency": "Lines: mean and 99th percentile of the latency of a batch at each batch size.",
    "plot_cosines": "Histogram of the cosine similarity of each image's scores.",
    "plot_reliability": "Reliability diagram: the share of right answers at each confidence.",
    "plot_confidences": "Histogram of the confidence of right and of wrong answers.",
    "plot_coverage": "Accuracy if only the most confident answers are given, over their share.",
    "measured": "measured",
    "mean": "mean",
    "quicker_99": "99 % are quicker",
    "ms_per_batch": "ms for a batch",
    "one_minus_cosine": "1 − cosine similarity (left is better)",
    "perfect_calibration": "perfect calibration",
    "mean_of_bin": "mean of a bin",
    "confidence": "confidence",
    "share_right": "share that is right",
    "right": "right",
    "wrong": "wrong",
    "percent_answered": "% of the images that are answered",
    "percent_right": "% of the answers right",
}

CHINESE_TEXTS: Dict[str, str] = {
    # the head
    "title": "TResNet on Ascend：报告",
    "brand": "TResNet on Ascend · 报告",
    "brand_of": "TResNet on Ascend · {when} 的报告",
    "state_measured": "已测量",
    "state_minimums": "达到所有下限",
    "state_look": "值得留意",
    "state_bad": "低于下限",
    "the_network": "网络",
    "on_cpu": "CPU 上的 {network}",
    "on_card": "{chip} 上的 {network}",
    "card": "卡",
    "right_answers": "{subject} 对 {n:,} 张图片中的 {share} 给出正确答案",
    "right_answers_one": "{subject} 对 {n:,} 张图片中的 {share} 给出正确答案",
    "was_evaluated": "{subject} 在 {n:,} 张图片上完成评估",
    "was_evaluated_one": "{subject} 在 {n:,} 张图片上完成评估",
    "and_speed": "{sentence}，每秒分类 {speed} 张图片",
    "full_stop": "{sentence}。",
    "sample_note": (
        "示例检查点是对这 20 张照片拟合出来的：它的精度证明整条链路正确，"
        "与 TResNet 本身的精度无关。"
    ),
    "sample_prepared_otherwise": (
        "示例检查点是按照它所声明的预处理方式对这 20 张照片拟合的，而本次运行使用了其他预处理："
        "精度不能证明任何事情。"
    ),
    # points
    "same_answer_for": "{second} 与 {first} 对 {n:,} 张图片中的 {share} 给出相同答案",
    "same_answer_for_one": "{second} 与 {first} 对 {n:,} 张图片中的 {share} 给出相同答案",
    "published_within": "Top-1 在 {name} 公开值的 95 % 置信区间之内",
    "published_not_within": "Top-1 不在 {name} 公开值的 95 % 置信区间之内",
    "likely_cause": "{sentence}；可能的原因：{cause}",
    "lineage_assumed": (
        "检查点没有明确表明权重的谱系；这里假定为 {lineage}，如果不对，则所有数字都是错的"
    ),
    "claimed_same": (
        "Top-{k}：检查点声明 {claimed}（{said}{about}），在 {n} 张图片上测得的相同"
        "（95 % 置信区间 {low} 到 {high} %）"
    ),
    "claimed_same_one": (
        "Top-{k}：检查点声明 {claimed}（{said}{about}），在 {n} 张图片上测得的相同"
        "（95 % 置信区间 {low} 到 {high} %）"
    ),
    "claimed_within": (
        "Top-{k}：检查点声明 {claimed}（{said}{about}），在 {n} 张图片上测得 {measured}："
        "相差 {points} 个百分点，偶然性可以解释（95 % 置信区间 {low} 到 {high} %）"
    ),
    "claimed_within_one": (
        "Top-{k}：检查点声明 {claimed}（{said}{about}），在 {n} 张图片上测得 {measured}："
        "相差 {points} 个百分点，偶然性可以解释（95 % 置信区间 {low} 到 {high} %）"
    ),
    "claimed_outside": (
        "Top-{k}：检查点声明 {claimed}（{said}{about}），在 {n} 张图片上测得 {measured}："
        "相差 {points} 个百分点，偶然性不能解释（95 % 置信区间 {low} 到 {high} %）；"
        "请把图片、标签、预处理和谱系与训练时比较"
    ),
    "claimed_outside_one": (
        "Top-{k}：检查点声明 {claimed}（{said}{about}），在 {n} 张图片上测得 {measured}："
        "相差 {points} 个百分点，偶然性不能解释（95 % 置信区间 {low} 到 {high} %）；"
        "请把图片、标签、预处理和谱系与训练时比较"
    ),
    "claimed_other_weights": "，属于同一文件中的另一组权重（见 --ema）",
    "claimed_best": "，训练中的最佳值",
    "claim_remark": "检查点声明：{remark}",
    "gate": "{what}：{measured}，下限为 {least}",
    "gate_top1": "Top-1 精度",
    "gate_top5": "Top-5 精度",
    "gate_throughput": "吞吐率",
    "gate_cosine": "最低余弦相似度",
    "not_measured": "未测量",
    "images_per_s": "张/秒",
    "spread_wide": (
        "batch size 为 {batch} 时，各次测量的吞吐率相差 ± {spread}："
        "有其他程序占用了处理器或卡，请在没有其他程序运行时重新测量"
    ),
    "note_all_equal": (
        "全部 {n} 个结果都相同：网络的答案与图片无关，因此推理有误，或者所有图片都是同一张"
    ),
    "note_orders": (
        "类别目录按 {order} 顺序（{who} 的编号方式）时 Top-1 为 {top1}%，按 {other} 顺序"
        "（{other_who} 的编号方式）时为 {other_top1}%（--class-order {other}）"
    ),
    "note_background": (
        "{classes} 个类别中，类别 0 被当作“background”，因此每个标签比其类别小 1："
        "Top-1 为 {top1}%，使用 --label-offset {other} 时为 {other_top1}%"
    ),
    "note_no_background": (
        "{classes} 个类别中，类别 0 没有被当作“background”，因此每个标签就是其类别："
        "Top-1 为 {top1}%，使用 --label-offset {other} 时为 {other_top1}%"
    ),
    "note_chance": (
        "Top-1 处于随机猜测的水平：通常是标签的编号与网络的类别不同（从 1 开始，或顺序不同），"
        "或者图片的预处理与训练时不同"
    ),
    "note_subset": "{labelled} 个有标签的名称中有 {n} 个没有预测：这是一个子集",
    "note_left_out": "{images} 张图片中有 {n} 张被跳过",
    "note_clipped_white": (
        "{n} 张 {mode} 模式的图片被截断为白色：大于 255 的值变为 255，与 Pillow 和 timm 相同；"
        "如果训练时用的是 8 位图片，请先转换"
    ),
    "note_clipped_white_one": (
        "{n} 张 {mode} 模式的图片被截断为白色：大于 255 的值变为 255，与 Pillow 和 timm 相同；"
        "如果训练时用的是 8 位图片，请先转换"
    ),
    "note_clipped_black": (
        "{n} 张 {mode} 模式的图片被截断为黑色：不大于 1 或小于 0 的值变为 0 或 1（满值 255），"
        "与 Pillow 和 timm 相同；如果训练时用的是 8 位图片，请先转换"
    ),
    "note_clipped_black_one": (
        "{n} 张 {mode} 模式的图片被截断为黑色：不大于 1 或小于 0 的值变为 0 或 1（满值 255），"
        "与 Pillow 和 timm 相同；如果训练时用的是 8 位图片，请先转换"
    ),
    # cards
    "interval": "95 % 置信区间 {low} 到 {high} %",
    "named_value": "{name}：{value}",
    "checkpoint_says": "检查点声明 {value}",
    "published_for": "{name} 的公开值：{value}",
    "mean_average_precision": "平均精度均值（mAP）",
    "throughput": "吞吐率",
    "at_batch_size": "batch size 为 {batch}",
    "spread_of_runs": "{n:,} 次测量之间 ± {spread}",
    "published_speed": "公开值：{speed} 张/秒，比值 {ratio}",
    "latency": "时延",
    "latency_mean_of_batch": "一个批次的平均值，batch size 为 {batch}",
    "latency_99": "99 % 快于 {latency} ms",
    "macro_f1": "宏平均 F1",
    "macro_f1_about": "所有类别的平均值，每个类别权重相同",
    "calibration_error": "校准误差",
    "calibration_error_about": "置信度与精度的平均差距",
    # navigation
    "on_this_page": "本页内容",
    "nav_speed": "速度",
    "nav_comparison": "对比",
    "nav_mistakes": "错误",
    "nav_confusion": "混淆",
    "nav_classes": "类别",
    "nav_calibration": "校准",
    "nav_run": "运行信息",
    # speed
    "speed_lead": "{chip} 上的纯推理：输入全为零，不读写文件。{runs}",
    "speed_median": "每个数字是 {repeat} 次测量的中位数，每次 {n:,} 个批次。",
    "speed_median_one": "每个数字是 {repeat} 次测量的中位数，每次 1 个批次。",
    "speed_median_range": (
        "每个数字是 {repeat} 次测量的中位数，每次 {least} 到 {most} 个批次，批次耗时较长时较少。"
    ),
    "speed_once_range": "一次测量，{least} 到 {most} 个批次，批次耗时较长时较少。",
    "speed_once": "一次测量，{n:,} 个批次。",
    "speed_once_one": "一次测量，1 个批次。",
    "batch_size": "batch size",
    "spread": "波动",
    "published": "公开值",
    "ratio": "比值",
    "latency_mean_ms": "平均时延，ms",
    "latency_99_ms": "99 %，ms",
    "all_chips": "{n:,} 个芯片同时运行",
    "all_chips_lead": "上表是单个芯片的结果。同时运行时芯片可能互相等待。",
    "images_per_s_at_once": "张/秒，同时运行",
    "sum_of_each": "单独运行之和",
    "lost": "损失",
    # the forecast of the speed
    "expected": "卡上的预期速度",
    "expected_lead": (
        "一个 Ascend {chip} 上每秒的图片数，根据网络的各层预估。这不是测量值。依据：{limits}。"
    ),
    "forecast": "预估值",
    "forecast_range": "80 % 范围",
    "from_to": "{low} 到 {high}",
    "measured_to_forecast": "测量值 / 预估值",
    "card_fast": "该卡与此类网络应有的速度相符：为预估值的 {low} 到 {high} 倍。",
    "card_fast_one": "该卡与此类网络应有的速度相符：为预估值的 {low} 倍。",
    "card_slow": (
        "该卡比此类网络应有的速度慢：batch size 为 {batch} 时每秒 {measured} 张图片，"
        "而 95 % 的此类网络达到 {reach}。"
    ),
    "card_is": "该卡：{verdict}。",
    "look_at": "请检查：",
    "semicolon": "；",
    # comparison
    "against": "{second} 与 {first} 的对比",
    "the_card": "卡",
    "the_card_int8": "卡（int8）",
    "compared_lead": "同样的 {n:,} 张图片，两者各运行一遍。",
    "compared_lead_one": "1 张图片，两者各运行一遍。",
    "same_answer": "答案相同",
    "changed_answers": "答案改变",
    "changed_counts": "{right} 张变为正确，{wrong} 张变为错误，{other} 张前后都错误",
    "cosine_similarity": "余弦相似度",
    "cosine_facts": "最低 {least}（{image}），平均 {mean}",
    "largest_difference": "最大差值",
    "in_a_score": "某个得分相差 {value}",
    "int8_weights": "权重 {bits} 位",
    "int8_speed": "速度",
    "int8_speed_words": (
        "{int8} 图片/秒，float32 为 {float32}：轮流测量，为其 {ratio} 倍（{low} 到 {high}）"
    ),
    "int8_loses": "Top-1 损失 {points} 个百分点",
    "int8_gains": "Top-1 提高 {points} 个百分点",
    "int8_nothing": "无",
    "int8_promise": "{change}（损失的 95 % 置信区间 {low} 到 {high}）；恢复为浮点：{back}",
    "int8_slower": "在此 CPU 上 int8 比 float32 慢：请使用 float32",
    "forecast_for_float16": "float16 的预估",
    "forecast_facts": "余弦相似度最低 {cosine}，{share} % 的答案相同",
    "answer_changed": "答案改变的图片",
    "answer_changed_one": "答案改变的图片",
    "answer_changed_first": "答案改变的图片：{n:,} 张中的前 {shown:,} 张",
    "changed_in_file": "全部：{file} 中“changed”列为“yes”的行。",
    "image_changed": "答案改变的图片",
    # forecast
    "forecast_title": "float16 的预估",
    "forecast_lead": "float16 对每个算子的影响，在 CPU 上用 {n:,} 张图片计算。{overflow}",
    "forecast_lead_one": "float16 对每个算子的影响，在 CPU 上用 1 张图片计算。{overflow}",
    "too_large": "超出 float16 范围：{names}。",
    "nothing_too_large": "没有超出其范围的值。",
    "operator": "算子",
    "type": "类型",
    "largest_value": "最大值",
    "cosine": "余弦相似度",
    # mistakes
    "mistakes": "错误",
    "mistakes_lead": (
        "共有 {n:,} 个错误答案。排在最前的是网络最有把握的：它们往往说明标签有误，"
        "或同一事物有两个名称。图片是网络看到的样子。"
    ),
    "mistakes_lead_one": "共有 1 个错误答案。图片是网络看到的样子。",
    "wrong_image": "答错的图片",
    "no_picture": "无图片",
    "is": "实为",
    "taken_for": "误认为",
    "probability": "概率",
    "all_mistakes": "按正确类别列出的全部错误",
    "surest_mistakes": "网络最有把握的 {n:,} 个错误，按正确类别列出",
    "in_files": "每张图片见 {predictions}，每个类别见 {classes}。",
    "mistakes_of_class": "{name}：{images:,} 张中错 {n:,} 张",
    "image": "图片",
    # confusion
    "confusion": "混淆",
    "confusion_lead": (
        "每行是一个正确类别，每列是一个答案。颜色越鲜明，占该行的比例越大；数字是图片数。"
        "对角线上的答案是正确的。"
    ),
    "confusion_words": "混淆矩阵：每行是一个正确类别，每列是一个答案。",
    "confusion_rows": "正确类别",
    "confusion_columns": "答案",
    "confused_pairs": "最容易混淆的类别",
    "confused_first": "{n:,} 对类别中最容易混淆的 {shown:,} 对",
    "right_class": "正确类别",
    "images": "图片数",
    # classes
    "classes": "类别",
    "classes_all": "所有 {n:,} 个有图片的类别，Top-1 最低的在前。",
    "classes_all_one": "唯一有图片的类别。",
    "classes_lowest": "{n:,} 个类别中 Top-1 最低的 {shown:,} 个。",
    "classes_sort": "点击列标题可排序。",
    "classes_averages": (
        "各类别的平均（宏平均）：精确率 {precision}，召回率 {recall}，F1 {f1}；按图片数加权："
        "{weighted_precision}、{weighted_recall}、{weighted_f1}。"
    ),
    "find_class": "查找类别",
    "class": "类别",
    "class_number": "类别 {number}",
    "recall": "Top-1 = 召回率",
    "precision": "精确率",
    "most_taken_for": "最常误认为",
    "on_paper": "打印时只含前 30 个类别；文件中有全部类别。",
    # calibration
    "calibration": "校准",
    "calibration_lead": (
        "网络给出的概率可信吗？15 个区间上的期望校准误差为 {error}：这是置信度与精度的平均差距。"
    ),
    # what was run
    "what_was_run": "运行信息",
    "checkpoint": "检查点",
    "network": "网络",
    "lineage": "{name} 谱系",
    "classes_count": "{n:,} 个类别",
    "classes_count_one": "{n:,} 个类别",
    "pixels": "{size}×{size} 像素",
    "preparation": "预处理",
    "data": "数据",
    "labels": "标签",
    "count_labelled": "{count} 有标签",
    "count_images": "{count} 张图片",
    "count_preprocessed": "{count} 已预处理",
    "count_bad": "{count} 损坏",
    "count_inferred": "{count} 已推理",
    "count_evaluated": "{count} 已评估",
    "count_left_out": "{count} 被跳过",
    "ran_on": "运行于",
    "ran_on_cpu": "本机 CPU，使用 ONNX Runtime；没有使用昇腾卡",
    "ran_on_card": "{chip}，使用 ais_bench",
    "chip": "芯片",
    "versions": "版本",
    "this_program": "本程序",
    "began": "开始时间",
    "took": "耗时",
    "time": "时间",
    "step": "步骤",
    "kept": "保留",
    "kept_made_in": "保留（生成用时 {time}）",
    "commands": "命令",
    "left_out": "被跳过的图片",
    "why": "原因",
    "more_left_out": "另有 {n:,} 张，全部列在 acc_report.json 中。",
    "footer": (
        "由 TResNet on Ascend {version} 版生成。单个文件，不加载任何外部内容。"
        "所有数字也在旁边的文件中：{files}。"
    ),
    "list_separator": "、",
    # captions of plots
    "caption_speed": "各 batch size 的吞吐率",
    "caption_latency": "整个批次的时延",
    "caption_cosines": "同一张图片的得分相差多少",
    "caption_reliability": "柱高于对角线：网络答对的比它声明的更多；低于对角线：更少。",
    "caption_confidences": "网络对正确和错误答案的把握程度。",
    "caption_coverage": "如果只给出最有把握的答案：其中多少是正确的。",
    # words in plots
    "plot_speed": "柱：各 batch size 每秒的图片数；数字见旁边的表格。",
    "plot_latency": "线：各 batch size 批次时延的平均值和第 99 百分位数。",
    "plot_cosines": "每张图片得分的余弦相似度直方图。",
    "plot_reliability": "可靠性图：各置信度区间内正确答案的比例。",
    "plot_confidences": "正确答案与错误答案的置信度直方图。",
    "plot_coverage": "只给出最有把握的答案时的精度，随其比例变化。",
    "measured": "测量值",
    "mean": "平均",
    "quicker_99": "99 % 快于此",
    "ms_per_batch": "每批次 ms",
    "one_minus_cosine": "1 − 余弦相似度（越靠左越好）",
    "perfect_calibration": "完全校准",
    "mean_of_bin": "区间平均",
    "confidence": "置信度",
    "share_right": "正确的比例",
    "right": "正确",
    "wrong": "错误",
    "percent_answered": "给出答案的图片，%",
    "percent_right": "正确的答案，%",
}

# What run.json, perf.json and speed.json hold in English, and the same in Chinese.
KNOWN_TEXTS: Dict[str, str] = dict(
    (
        (
            "from figures that were published in 2022 and 2023 for one 310P3, in "
            "float16, compute only",
            "2022 和 2023 年公开的单个 310P3 的数据，float16，仅计算部分",
        ),
        (
            'it answers "one card or four?", not "1,500 or 1,700?"',
            "它回答“一张卡还是四张卡？”，不回答“1,500 还是 1,700？”",
        ),
        (
            "nothing was published for such networks above 384 pixels, so the real range is wider",
            "384 像素以上的此类网络没有公开数据，因此实际范围更大",
        ),
        (
            "the model: an open batch size is slower, so compile one for each batch size "
            "(onnx2om.sh)",
            "模型：不固定的 batch size 较慢，请为每个 batch size 各编译一个（onnx2om.sh）",
        ),
        (
            "other processes on the chip (npu-smi info)",
            "芯片上的其他进程（npu-smi info）",
        ),
        (
            "its clock and temperature (npu-smi info -t common -i 0)",
            "芯片的频率和温度（npu-smi info -t common -i 0）",
        ),
        (
            "whether it is a virtual NPU, a part of a chip (npu-smi info -t info-vnpu -i 0 -c 0)",
            "是否为虚拟 NPU，即芯片的一部分（npu-smi info -t info-vnpu -i 0 -c 0）",
        ),
        (
            "the versions of driver and CANN: the published figures are of 2022 and "
            "2023, older ones may be slower",
            "驱动和 CANN 的版本：公开值是 2022 和 2023 年的，更旧的版本可能更慢",
        ),
        (
            "the graph: it has SpaceToDepth and Pad, which the card runs slowly (export "
            "with --stem conv4 --reflect slice)",
            "计算图：含有 SpaceToDepth and Pad，卡运行它们较慢（导出时使用 --stem conv4 "
            "--reflect slice）",
        ),
        (
            "the graph: it has SpaceToDepth, which the card runs slowly (export with "
            "--stem conv4 --reflect slice)",
            "计算图：含有 SpaceToDepth，卡运行它们较慢（导出时使用 --stem conv4 --reflect slice）",
        ),
        (
            "the graph: it has Pad, which the card runs slowly (export with --stem conv4 "
            "--reflect slice)",
            "计算图：含有 Pad，卡运行它们较慢（导出时使用 --stem conv4 --reflect slice）",
        ),
        (
            "Sample data",
            "示例数据",
        ),
        (
            "Data",
            "数据",
        ),
        (
            "Export",
            "导出",
        ),
        (
            "Preprocess",
            "预处理",
        ),
        (
            "Tuning",
            "调优",
        ),
        (
            "Forecast for float16",
            "float16 预估",
        ),
        (
            "Forecast of the speed",
            "速度预估",
        ),
        (
            "Compile",
            "编译",
        ),
        (
            "Inference",
            "推理",
        ),
        (
            "Quantise",
            "量化",
        ),
        (
            "Accuracy",
            "精度",
        ),
        (
            "Published accuracy",
            "公开精度",
        ),
        (
            "Comparison with ONNX Runtime",
            "与 ONNX Runtime 对比",
        ),
        (
            "Comparison with float32",
            "与 float32 对比",
        ),
        (
            "Comparison with float16",
            "与 float16 对比",
        ),
        (
            "Performance",
            "性能",
        ),
        (
            "Report",
            "报告",
        ),
    )
)

TABLES: Dict[str, Dict[str, str]] = {"en": ENGLISH_TEXTS, "zh": CHINESE_TEXTS}
HTML_NAMES = {"en": "en", "zh": "zh-CN"}  # for <html lang>


class Say:
    """Says the texts of one language: say("latency_99", latency=5)."""

    def __init__(self, language: str) -> None:
        self.language = language
        self.table = TABLES[language]

    def __call__(self, key: str, **values: Any) -> str:
        """The text of a key with these values; of KEY_one if n is 1. Raises: KeyError."""
        if values.get("n") == 1 and key + "_one" in self.table:
            key += "_one"
        return self.table[key].format(**values)

    def known(self, text: str) -> str:
        """An English text of another program in this language, if it is known; else as it is."""
        return text if self.language == "en" else KNOWN_TEXTS.get(text, text)


ENGLISH = Say("en")


def language_of(environment: Mapping[str, str]) -> str:
    """The language that a user's environment asks for: the first of LC_ALL, LC_MESSAGES, LANG."""
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        if environment.get(name):
            return "zh" if environment[name].lower().startswith("zh") else "en"
    return "en"
