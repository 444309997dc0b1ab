"""The works that a report can cite; it lists those that its text names."""

import json
from typing import Any

_WORKS = {
    "Ba et al. 2016": "J. L. Ba, J. R. Kiros, G. E. Hinton. Layer normalization. arXiv:1607.06450.",
    "Dao 2023": "T. Dao. FlashAttention-2: faster attention with better parallelism and work "
    "partitioning. arXiv:2307.08691.",
    "Eldan and Li 2023": "R. Eldan, Y. Li. TinyStories: how small can language models be and still "
    "speak coherent English? arXiv:2305.07759.",
    "Fan et al. 2018": "A. Fan, M. Lewis, Y. Dauphin. Hierarchical neural story generation. ACL. "
    "arXiv:1805.04833.",
    "Gokaslan and Cohen 2019": "A. Gokaslan, V. Cohen. OpenWebText corpus.",
    "Hendrycks and Gimpel 2016": "D. Hendrycks, K. Gimpel. Gaussian error linear units (GELUs). "
    "arXiv:1606.08415.",
    "Hoffmann et al. 2022": "J. Hoffmann et al. Training compute-optimal large language models. "
    "arXiv:2203.15556.",
    "Holtzman et al. 2020": "A. Holtzman, J. Buys, L. Du, M. Forbes, Y. Choi. The curious case of "
    "neural text degeneration. ICLR. arXiv:1904.09751.",
    "Jordan et al. 2024": "K. Jordan et al. Muon: an optimizer for hidden layers in neural "
    "networks. kellerjordan.github.io/posts/muon.",
    "Keskar et al. 2019": "N. S. Keskar, B. McCann, L. R. Varshney, C. Xiong, R. Socher. CTRL: a "
    "conditional transformer language model for controllable generation. arXiv:1909.05858.",
    "Li et al. 2016": "J. Li, M. Galley, C. Brockett, J. Gao, B. Dolan. A diversity-promoting "
    "objective function for neural conversation models. NAACL. arXiv:1510.03055.",
    "Loshchilov and Hutter 2017": "I. Loshchilov, F. Hutter. SGDR: stochastic gradient descent "
    "with warm restarts. ICLR. arXiv:1608.03983.",
    "Loshchilov and Hutter 2019": "I. Loshchilov, F. Hutter. Decoupled weight decay "
    "regularization. ICLR. arXiv:1711.05101.",
    "Merity et al. 2016": "S. Merity, C. Xiong, J. Bradbury, R. Socher. Pointer sentinel mixture "
    "models. arXiv:1609.07843.",
    "Muennighoff et al. 2023": "N. Muennighoff et al. Scaling data-constrained language models. "
    "NeurIPS. arXiv:2305.16264.",
    "Nguyen et al. 2024": "M. Nguyen et al. Turning up the heat: min-p sampling for creative and "
    "coherent LLM outputs. arXiv:2407.01082.",
    "Press and Wolf 2017": "O. Press, L. Wolf. Using the output embedding to improve language "
    "models. EACL. arXiv:1608.05859.",
    "Radford et al. 2019": "A. Radford, J. Wu, R. Child, D. Luan, D. Amodei, I. Sutskever. "
    "Language models are unsupervised multitask learners. OpenAI.",
    "Sennrich et al. 2016": "R. Sennrich, B. Haddow, A. Birch. Neural machine translation of rare "
    "words with subword units. ACL. arXiv:1508.07909.",
    "Shazeer 2020": "N. Shazeer. GLU variants improve Transformer. arXiv:2002.05202.",
    "Vaswani et al. 2017": "A. Vaswani et al. Attention is all you need. NeurIPS. "
    "arXiv:1706.03762.",
    "Welleck et al. 2020": "S. Welleck, I. Kulikov, S. Roller, E. Dinan, K. Cho, J. Weston. Neural "
    "text generation with unlikelihood training. ICLR. arXiv:1908.04319.",
    "Zhang and Sennrich 2019": "B. Zhang, R. Sennrich. Root mean square layer normalization. "
    "NeurIPS. arXiv:1910.07467.",
    "Zhu et al. 2018": "Y. Zhu et al. Texygen: a benchmarking platform for text generation models. "
    "SIGIR. arXiv:1802.01886.",
}
DATA_SETS = {
    "tinystories": "Eldan and Li 2023",
    "wikitext-2": "Merity et al. 2016",
    "openwebtext": "Gokaslan and Cohen 2019",
}


def cited(sections: list[dict[str, Any]]) -> list[str]:
    """The works that the text of the sections names, in alphabetical order, each with its year."""
    text = json.dumps([b for s in sections for b in s["blocks"] if b["kind"] != "samples"])
    return [f"{name}: {work}" for name, work in _WORKS.items() if name in text]
