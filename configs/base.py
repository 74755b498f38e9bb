"""Holds every key of a run with its comment and the values that most small runs share.

All other configs start from it. It is not a run of its own, because it names no data.
In a config file:

  from omni_jax.config import derived

  def get_config():
    c = derived(__file__, 'base')
    c.data.source = 'jsonl'
    ...
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = ConfigDict()
  c.seed = 0  # of the weights, the order of the data and the noise
  # Stages in the order in which they run, each resumable: autoencoders by their names,
  # then the whole model, then its evaluation.
  c.stages = ('codec', 'omni', 'evaluate')
  # CPU devices where there is no accelerator. With one device, XLA's own threads leave
  # half of a second core idle.
  c.cpu_devices = 1
  # Sizes of the mesh axes. One of them may be -1, which takes all remaining devices.
  c.mesh = ConfigDict(dict(data=-1, fsdp=1, expert=1, tensor=1, context=1))
  c.distributed = False  # whether the run has several processes, one per host
  c.profile = ''  # 'first:last' steps of the omni stage to trace
  # Where metrics go: 'jsonl' (the report draws its curves from it), 'tensorboard',
  # 'wandb', 'mlflow'.
  c.writers = ('jsonl', 'tensorboard')
  # Every N-th step runs twice and the bits are compared, to find hardware that computes
  # wrong results. 0: never.
  c.repeat_every = 0
  # FOLDER or FOLDER@STEP of a run whose weights the omni stage starts from.
  c.init_from = ''
  c.compilation_cache = '~/.cache/omni_jax/xla'  # folder; '': no cache
  c.model = _model()
  c.data = _data(c.model)
  c.loader = ConfigDict()
  # Parts of a batch that are packed independently. 0: one for each process.
  c.loader.lanes = 0
  c.loader.workers = 0  # processes that prepare examples; 0: the loader's own thread
  c.loader.strict = True  # refuse to resume with data other than the checkpoint's
  c.codec = _stage(steps=700, lr=4e-3, warmup=50, b2=0.95)
  c.codec.save_every = 350
  # FOLDER of a run whose codec is used. Remove 'codec' from c.stages then.
  c.codec.init_from = ''
  c.codec.batch = 32  # crops in a batch
  c.codec.pieces = 6  # frames of 80 ms in a crop
  c.omni = _stage(steps=1300, lr=2e-3, warmup=100, b2=0.98)
  c.omni.save_every = 650
  c.omni.bias_step = 1e-3  # step of the experts' biases in loss-free balancing
  c.omni.accumulate = 1  # microbatches of a batch, computed one after the other
  c.omni.ema = 0.0  # decay of the weights' moving average; 0: no average
  c.omni.freeze = ()  # patterns of parameters that are not trained, such as 'decoder.*'
  # Weights of the losses: of each medium's head, of the routers (balance, z), and of
  # the text head at the positions of a medium (inside), where a word has weight 1.
  c.omni.losses = ConfigDict(
    dict(text=1.0, image=1.0, audio=1.0, balance=0.01, z=0.001, inside=dict(audio=1.0))
  )
  c.generate = ConfigDict()
  c.generate.temperature = 0.5  # of text; 0: the most probable id
  c.generate.top_p = 0.95  # of nucleus sampling
  c.generate.speech_temperature = 0.3
  c.generate.guidance = 1.5  # classifier-free guidance of images; 1: none
  c.generate.max_new = 32  # largest number of ids in a reply
  c.generate.dit_steps = 16  # denoising steps of an image
  c.evaluate = _evaluate()
  return c


def _model() -> ConfigDict:
  c = ConfigDict()
  c.dtype = 'float32'  # of the computation, or 'bfloat16'
  c.weights = 'float32'  # of weights and moments, or 'bfloat16'
  c.tokenizer = ConfigDict()
  c.tokenizer.languages = ('en',)  # each has a token
  c.tokenizer.voices = ()  # each has a token
  c.tokenizer.max_grid = 4  # largest number of patches along a side of an image
  c.tokenizer.marks = ()  # names of further special tokens
  c.tokenizer.size = 0  # size of the vocabulary; 0: only the ids that have a meaning
  c.decoder = ConfigDict()
  c.decoder.width = 128
  c.decoder.layers = 4
  c.decoder.heads = 4
  c.decoder.kv_heads = 2
  c.decoder.head_dim = 32
  c.decoder.experts = 8
  c.decoder.top_k = 2  # experts that a token visits
  c.decoder.expert_hidden = 64
  c.decoder.shared_hidden = 128  # width of the shared expert; 0: none
  c.decoder.routing = 'token'  # or 'modality': one router per medium
  c.decoder.exchange = 'gather'  # of tokens between devices, or 'all_to_all'
  # Room of an all-to-all, in multiples of the mean number of tokens. 0: for all tokens.
  c.decoder.capacity = 2.0
  c.decoder.block = 64  # tokens of one expert that are computed together
  c.decoder.theta = 1000.0  # base of the rotary frequencies
  c.decoder.remat = 'none'  # 'none', 'dots', 'attention', 'full', 'offload'
  c.decoder.unroll = 1  # layers in one iteration of the scan
  # A medium that is deleted (`del c.model.image`) is not in the model.
  c.image = ConfigDict()
  c.image.height = 8  # of the largest image, in pixels
  c.image.width = 8
  c.image.channels = 1
  c.image.patch = 2  # side of a patch, in pixels
  c.image.mean = 0.305  # of the pixels of images that are written
  c.image.std = 0.376
  c.image.fit = 'stretch'  # to the largest size, or 'keep' the aspect ratio
  # Bidirectional encoder of images that are read; layers=0: none.
  c.image.embed = ConfigDict(dict(layers=0, heads=4, hidden=256))
  c.image.head = ConfigDict(dict(width=128, layers=3, heads=4, hidden=256))
  c.image.head.noises = 2  # samples of noise per image and step
  c.image.head.null = 0.1  # share of conditions that are dropped, for guidance
  c.image.head.shift = 1.0  # shift of the flow's times for the resolution
  c.image.head.remat = 'none'  # 'none', 'dots', 'full'
  c.audio = ConfigDict()
  c.audio.rate = 8000  # samples per second
  c.audio.seconds = 0.96  # length of the longest clip
  c.audio.mels = 32  # mel bands
  c.audio.mel_hops = 8  # spectrogram columns in a frame of 80 ms
  c.audio.mel_window = 256  # samples
  c.audio.embed = ConfigDict()
  c.audio.embed.hearing = 'mel'  # or 'codes'
  # Or 'clip': levels relative to the mean of the clip, which is not causal.
  c.audio.embed.level = 'fixed'
  c.audio.embed.channels = 0  # of two convolutions over the columns; 0: none
  c.audio.embed.hidden = 256
  c.audio.head = ConfigDict(dict(width=128, layers=2, heads=4, hidden=256))
  c.audio.head.first_weight = 3.0  # of the first codebook's loss; the others weigh 1
  c.codec = ConfigDict()
  c.codec.latent = 64  # width of a frame's latent
  c.codec.codebooks = 4
  c.codec.entries = 256  # in a codebook
  c.codec.decay = 0.98  # of the entries, which are moving averages
  c.codec.width = 128
  c.codec.layers = 2  # of the encoder and of the decoder
  c.codec.hops = 2  # spectra that a patch is decoded into
  c.codec.heads = 4
  c.codec.hidden = 256
  c.codec.window = 16  # patches that attention reaches back
  c.codec.subframes = 4  # patches in a frame
  c.codec.commitment = 0.05  # weight of the commitment loss
  c.codec.waveform = 0.0  # weight of the waveform loss
  c.codec.dropout = 0.0  # share of clips that keep only the first codebooks
  c.codec.unquantized = 0.5  # share of clips that are decoded without quantisation
  return c


def _data(model: ConfigDict) -> ConfigDict:
  c = ConfigDict()
  c.source = ''  # a row of omni_jax/data/sources/table.py
  c.seed = 0  # of the random choices of a source
  # 'computed' by the autoencoders in the step, or 'stored' by convert --codes=RUN.
  c.codes = 'computed'
  c.root = ''  # folder of the files
  c.train_file = 'train.jsonl'
  c.eval_file = 'test.jsonl'
  c.leave_out = ''  # a voice that is neither heard nor spoken in training
  c.train_split = 'train'  # of data sets that have names and splits
  c.eval_split = 'test'
  c.name = ''  # of a data set in TensorFlow Datasets
  c.read = ''  # feature of the prompt, where there is a choice
  c.write = ''  # feature of the answer
  # Language of the answers. For ready sets one or more, separated by commas; '': all.
  c.language = ''
  c.longest = 0  # largest number of bytes in a line of text20; 0: any number
  c.piece = 64  # bytes in a piece of a text file
  # Of a mixture: NAME -> keys that differ from these, and weight, cap, epochs.
  c.sources = ConfigDict()
  c.temperature = 1.0  # of a mixture's shares
  c.voices = 14  # of the digits
  c.takes = 5  # takes of each voice of the digits
  c.spoken_takes = 1  # takes of each voice that the model learns to speak
  c.recipes = ConfigDict()  # of the digits: kind of example -> share
  c.rate = model.audio.get_ref('rate')
  c.seconds = model.audio.get_ref('seconds')
  # Static sizes of a batch: rows, positions of a row, and the (pieces, items) of each
  # stream that `group` rows share.
  c.budget = ConfigDict(dict(rows=16, length=128, group=1, streams=dict()))
  c.budget.streams.image = ConfigDict(dict(seen=(48, 3), drawn=(32, 2)))
  c.budget.streams.audio = ConfigDict(dict(heard=(20, 8), spoken=(12, 4)))
  # Strengths of the augmentation of media that are only read. A medium that is deleted
  # here is not augmented.
  c.augment = ConfigDict()
  c.augment.image = ConfigDict(dict(turn=0.0, scale=0.0, shear=0.0, shift=0.0))
  c.augment.audio = ConfigDict(
    dict(speed=0.0, pitch=0.0, gain=0.0, tone=0.0, noise=0.0, delay=0.0)
  )
  return c


def _stage(*, steps: int, lr: float, warmup: int, b2: float) -> ConfigDict:
  c = ConfigDict()
  c.steps = steps
  c.log_every = 50
  c.save_every = steps
  # Updates that are skipped because they are not finite. One more ends the run.
  c.bad_steps = 0
  c.optim = ConfigDict()
  c.optim.kind = 'muon'  # or 'adamw'
  c.optim.lr = lr  # peak of the learning rate
  c.optim.warmup = warmup  # steps
  c.optim.final = 0.02  # share of the peak at the last step
  c.optim.b1 = 0.9
  c.optim.b2 = b2
  c.optim.weight_decay = 0.01
  c.optim.clip = 1.0  # largest norm of the gradient
  c.optim.multipliers = ConfigDict()  # prefix of a parameter's name -> factor
  return c


def _evaluate() -> ConfigDict:
  c = ConfigDict()
  c.seed = 0  # of prompts and sampling
  c.n = 200  # prompts of each task of the digits
  c.n_images = 400  # prompts of text to image
  c.n_any = 8  # prompts to which the model chooses the media of its reply
  c.n_data = 256  # examples of each group of a file
  c.n_codec = 800  # test clips that the codec reconstructs
  c.targets = ConfigDict()  # group of a file -> metric -> bar
  return c
