"""Words: what a report says around its figures: captions, meanings, and the look of the page.

In: nothing. Out: tables of text. Called by the page. It knows no figure.
"""

HOW = {
    "grouped": "no person or camera sits on both sides of the split",
    "ratio": "a random split: the same person or camera may sit on both sides, which flatters every figure",
    "official": "the split that came with the data, leaks and all (see the warnings)",
}
READ = {  # picture -> what it is, how to read it
    "accuracy-loss-size": (
        "Accuracy, loss and size of the models side by side",
        "A good student stands nearly as high as its teacher on the left and is a sliver beside it on the right. "
        "The dark lines are 95 % intervals.",
    ),
    "difference": (
        "Distilled minus alone, with intervals, and for each group",
        "Right of the zero line the distilled student is better. A bar that touches the line could be chance. "
        "Ticks under a dot are single seeds; each stalk is one person or camera.",
    ),
    "confusion": (
        "Confusion matrices of the models",
        "Each row is what a picture truly shows, and how often it was called what, in percent. A dark diagonal is "
        "good; dark cells off it are habits of confusion.",
    ),
    "per-class": (
        "F1 by class and model",
        "Short bars are the classes not to rely on. n is how many samples were tested.",
    ),
    "reliability": (
        "Reliability diagrams",
        "On the dashed line an answer given with 80 % is right 80 times in a hundred. Dots below it: the model is too "
        "sure of itself; above: too modest. Bigger dots hold more samples.",
    ),
    "curves": (
        "Learning curves",
        "Thin lines are single runs, thick ones their mean. Validation loss that rises while training loss falls is "
        "learning by heart. Training losses are different mixtures and cannot be compared with one another.",
    ),
    "widths": (
        "Channels of each layer before and after pruning",
        "Pale: the student before. Strong: what pruning left. Line: the narrower student of the same arithmetic, which "
        "has every layer at one share of its width.",
    ),
    "loss-parts": ("Share of each part of the loss", "What each epoch's training was driven by."),
}
WORDS = {
    "Accuracy": "share of samples whose most probable class is the true one",
    "Balanced accuracy": "mean of the classes' recalls: a rare class weighs as much as a common one",
    "Macro-F1": "mean of the classes' F1, which is high only where both precision and recall are",
    "Precision, recall": "of those called X, how many are X; of those that are X, how many were called X",
    "Loss": "mean −log probability given to the true class: 0 is perfect, and being surely wrong costs most",
    "ECE": "by how much, on average, the stated probability is off from how often it is right",
    "AUROC": "chance that a sample of a class gets a higher probability for it than one that is not of it",
    "Alarms raised at 1 % false alarms": "share of the dangerous samples that raise an alarm when the threshold is "
    "set so that at most 1 % of the safe ones do",
    "95 % interval": "range of the figure when whole groups (and seeds, where there are several) are drawn anew with "
    "replacement, 1000 times: the spread to expect with other people or cameras like these",
    "Student narrower": "the baseline of pruning: the same student with every layer at one share of its width, of the "
    "same arithmetic, distilled for as long from the start",
    "Multiply-adds": "multiplications with an addition that one sample takes: its arithmetic; not the same as its time",
    "INT8": "whole numbers of one byte instead of four bytes of floating point",
    "Student alone": "the control: the same student, data and epochs, with no teacher",
}
STYLE = """
:root{color-scheme:light;--ink:#1d2226;--soft:#5c666e;--line:#dfe4e8;--ground:#f5f7f8}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1040px;margin:0 auto;padding:32px 20px 60px}
h1{font-size:1.75rem;line-height:1.2;margin:0 0 6px}
h2{font-size:1.2rem;margin:0 0 12px}
h3{font-size:1rem;margin:22px 0 8px}
p{margin:0}
.under,.read,figcaption{color:var(--soft);font-size:.9rem}
.read{margin:10px 0}
section,.verdict,.tiles>div{background:#fff;border:1px solid var(--line);border-radius:10px}
section{padding:20px 22px;margin-top:18px}
.verdict{display:flex;gap:16px;align-items:center;padding:18px 22px;
margin-top:20px;border-left-width:7px;font-size:1.15rem}
.mark{flex:none;width:40px;height:40px;border-radius:50%;color:#fff;
font:700 24px/40px system-ui,sans-serif;text-align:center}
.small{font-size:1rem;padding:12px 18px;margin-top:10px}
.small .mark{width:28px;height:28px;font:700 16px/28px system-ui,sans-serif}
.yes{border-left-color:#00775a}.yes .mark{background:#00775a}
.no{border-left-color:#b23b00}.no .mark{background:#b23b00}
.unclear{border-left-color:#697680}.unclear .mark{background:#697680}
.verdict+.tiles{margin-top:16px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin-top:12px}
.tiles>div{padding:12px 16px}
.tiles b{display:block;font-size:1.6rem;line-height:1.2}
.tiles small{font-size:1rem;font-weight:500;color:var(--soft)}
.tiles span{font-size:.85rem;color:var(--soft)}
.beware{background:#fffaf0;border-color:#efd9a8}
.beware ul{margin:0;padding-left:1.2em}
.beware li+li{margin-top:5px}
figure{margin:0}
.plot{margin-bottom:18px}
.plot:last-child{margin-bottom:0}
.plot img{display:block;width:100%;height:auto}
.plot figcaption{margin-top:6px;max-width:75ch}
.table{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:7px 12px 7px 0;border-bottom:1px solid var(--line);text-align:right;vertical-align:top}
th{font-weight:600}
thead th{vertical-align:bottom;color:var(--soft);font-size:.82rem}
th:first-child,.word{text-align:left}
th[colspan]{text-align:center;border-left:1px solid var(--line)}
tbody tr:last-child>*{border-bottom:0}
th i,td i{font-style:normal;font-weight:400;color:var(--soft);font-size:.85em}
td small,th small{display:block;color:var(--soft);font-size:.78rem}
td small{white-space:nowrap}
th small{font-weight:400;min-width:130px;max-width:46ch}
td div+div{margin-top:6px}
td div i{white-space:nowrap}
code{font-size:.8rem;overflow-wrap:anywhere}
td code{display:block;min-width:200px}
td span,th span{white-space:nowrap}
.mistakes{display:grid;grid-template-columns:repeat(auto-fill,minmax(148px,1fr));gap:14px}
.mistakes img{width:100%;border-radius:6px;image-rendering:auto;display:block;margin-bottom:4px}
.mistakes figcaption{color:var(--ink);line-height:1.35}
.mistakes small{display:block;color:var(--soft);overflow-wrap:anywhere;font-size:.72rem;margin-top:2px}
dl{display:grid;grid-template-columns:minmax(140px,max-content) 1fr;gap:6px 18px;margin:0;font-size:.9rem}
dt{font-weight:600}
dd{margin:0;color:var(--soft)}
@media (max-width:640px){
main{padding:18px 10px 40px}section{padding:16px 14px}h1{font-size:1.4rem}
.verdict{font-size:1rem;padding:14px;align-items:flex-start;gap:12px}.small{font-size:.92rem}
.tiles{grid-template-columns:1fr 1fr}
table{font-size:.8rem}thead th{font-size:.74rem}th,td{padding-right:7px}td small,th small{font-size:.7rem}
dl{display:block}dd{margin-bottom:8px}
}
@media print{
body{background:#fff;font-size:11pt}main{max-width:none;padding:0}
section,.verdict,.tiles>div{border-radius:0}figure,tr,.verdict,.tiles{break-inside:avoid}h2,h3{break-after:avoid}
.table{overflow:visible}
}
"""
