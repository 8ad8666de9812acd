"""The transformers classes that were verified through their own forward, by layout, and the blocks around them.

`python -m mimetic coverage transformers` verifies them again; a class that is not here is refused by name. Names are
short: bert.BertSelfAttention is transformers.models.bert.modeling_bert.BertSelfAttention. Checked with transformers
5.24.
"""


def _table(*groups: tuple) -> dict:
    """{name: the rest of its group} from groups (..., "name name ...")."""
    return {name: group[:-1] for group in groups for name in group[-1].split()}


# Tables of names, a group a few lines
# fmt: off
# class -> (layout, what the module itself does not show: rope, qk_norm, gate, bias_gate, inner_norm, value_norm,
# unscaled, clamped)
CLASSES = _table(
    ("interleaved", "", """
    bloom.BloomAttention
    """),
    ("interleaved", "rope", """
    falcon.FalconAttention gpt_neox.GPTNeoXAttention gpt_neox_japanese.GPTNeoXJapaneseAttention
    persimmon.PersimmonAttention
    """),
    ("parts", "", """
    bark.BarkSelfAttention blip.BlipAttention blip_2.Blip2Attention
    decision_transformer.DecisionTransformerGPT2Attention deepseek_ocr2.DeepseekOcr2SamVisionSdpaAttention
    glm_image.GlmImageVisionAttention got_ocr2.GotOcr2VisionAttention gpt2.GPT2Attention
    gpt_bigcode.GPTBigCodeAttention imagegpt.ImageGPTAttention instructblip.InstructBlipAttention
    instructblipvideo.InstructBlipVideoAttention mgp_str.MgpstrAttention openai.Attention
    pp_formulanet.PPFormulaNetVisionAttention sam.SamVisionSdpaAttention sam_hq.SamHQVisionSdpaAttention
    seggpt.SegGptAttention slanext.SLANeXtVisionAttention unlimited_ocr.UnlimitedOcrSamVisionSdpaAttention
    vitdet.VitDetAttention
    """),
    ("parts", "clamped", """
    mpt.MptAttention
    """),
    ("parts", "rope", """
    cohere_compass.CohereCompassVisionAttention dots3_note.Dots3NoteVisionAttention
    ernie4_5_vl_moe.Ernie4_5_VLMoeVisionAttention exaone4_5.Exaone4_5_VisionAttention glm4v.Glm4vVisionAttention
    glm4v_moe.Glm4vMoeVisionAttention glm5_next.Glm5NextVisionAttention glm_ocr.GlmOcrVisionAttention
    modernbert.ModernBertAttention phi3.Phi3Attention phi4_multimodal.Phi4MultimodalAttention
    qwen2_5_vl.Qwen2_5_VLVisionAttention qwen2_vl.VisionAttention qwen3_5.Qwen3_5VisionAttention
    qwen3_5_moe.Qwen3_5MoeVisionAttention qwen3_omni_moe.Qwen3OmniMoeVisionAttention
    qwen3_vl.Qwen3VLVisionAttention qwen3_vl_moe.Qwen3VLMoeVisionAttention qwen4_exp.Qwen4ExpVisionAttention
    """),
    ("separate", "", """
    aimv2.Aimv2Attention albert.AlbertAttention altclip.AltCLIPAttention audio_spectrogram_transformer.ASTAttention
    audioflamingo3.AudioFlamingo3Attention bart.BartAttention beit.BeitAttention
    bigbird_pegasus.BigBirdPegasusDecoderAttention biogpt.BioGptAttention blenderbot.BlenderbotAttention
    blenderbot_small.BlenderbotSmallAttention blt.BltCrossAttention canary.CanaryCrossAttention
    canary.CanarySelfAttention chinese_clip.ChineseCLIPVisionAttention clip.CLIPAttention clipseg.CLIPSegAttention
    clvp.ClvpSelfAttention cohere_asr.CohereAsrCrossAttention cohere_asr.CohereAsrSelfAttention
    conditional_detr.ConditionalDetrSelfAttention cosmos3_edge.Cosmos3EdgeVisionAttention cpmant.CpmAntAttention
    ctrl.MultiHeadAttention d_fine.DFineSelfAttention
    data2vec.modeling_data2vec_audio.Data2VecAudioAttention deformable_detr.DeformableDetrSelfAttention
    deimv2.Deimv2SelfAttention deit.DeiTAttention detr.DetrCrossAttention detr.DetrSelfAttention
    dinov2.Dinov2Attention dinov2_with_registers.Dinov2WithRegistersAttention distilbert.DistilBertSelfAttention
    edgetam.EdgeTamAttention edgetam_video.EdgeTamVideoAttention edgetam_video.EdgeTamVideoPerceiverAttention
    eomt.EomtAttention flaubert.MultiHeadAttention
    fun_asr_nano.FunAsrNanoAttention git.GitVisionAttention granite_docling.GraniteDoclingVisionAttention
    groupvit.GroupViTAttention hubert.HubertAttention idefics.vision.IdeficsVisionAttention
    idefics2.Idefics2VisionAttention idefics3.Idefics3VisionAttention ijepa.IJepaAttention
    internvl.InternVLVisionAttention janus.JanusVisionAttention kosmos2.Kosmos2VisionAttention
    kosmos2_5.Kosmos2_5TextAttention kosmos2_5.Kosmos2_5VisionAttention led.LEDDecoderAttention
    longt5.LongT5Attention lw_detr.LwDetrAttention lw_detr.LwDetrViTAttention m2m_100.M2M100Attention
    marian.MarianAttention mbart.MBartAttention metaclip_2.MetaClip2Attention minicpm_ocr.MiniCPMOcrVisionAttention
    minicpmv4_6.MiniCPMV4_6VisionAttention minicpmv4_7.MiniCPMV4_7VisionAttention mllama.MllamaVisionAttention
    molmo2.Molmo2VisionAttention moonshine_streaming.MoonshineStreamingEncoderAttention
    moss_transcribe_diarize.MossTranscribeDiarizeAudioAttention mpnet.MPNetSelfAttention mt5.MT5Attention
    musicgen.MusicgenAttention musicgen_melody.MusicgenMelodyAttention mvp.MvpAttention
    nemotron_asr_streaming.NemotronAsrStreamingEncoderAttention nemotron_h.NemotronHAttention
    nllb_moe.NllbMoeAttention omdet_turbo.OmDetTurboMultiheadAttention omniasr.OmniASRAttention
    opt.OPTAttention ovis2.Ovis2VisionAttention
    owlv2.Owlv2Attention owlvit.OwlViTAttention parakeet.ParakeetEncoderAttention patchtst.PatchTSTAttention
    pegasus.PegasusAttention pegasus_x.PegasusXAttention phi4_multimodal.Phi4MultimodalAudioAttention
    phi4_multimodal.Phi4MultimodalVisionAttention pix2struct.Pix2StructTextAttention
    pix2struct.Pix2StructVisionAttention pixio.PixioAttention plbart.PLBartAttention pop2piano.Pop2PianoAttention
    pp_doclayout_v2.PPDocLayoutV2SelfAttention pp_doclayout_v3.PPDocLayoutV3SelfAttention
    pp_doclayout_v4.PPDocLayoutV4SelfAttention pp_formulanet.PPFormulaNetAttention prophetnet.ProphetNetAttention
    pvt_v2.PvtV2SelfAttention qianfan_ocr.QianfanOCRVisionAttention qwen2_5_omni.Qwen2_5OmniAudioAttention
    qwen2_audio.Qwen2AudioAttention qwen3_asr.Qwen3ASRAudioAttention qwen3_omni_moe.Qwen3OmniMoeAudioAttention
    radio.RadioAttention rf_detr.RfDetrDinov2Attention rt_detr.RTDetrSelfAttention
    rt_detr_v2.RTDetrV2SelfAttention sam2.Sam2Attention sam2_video.Sam2VideoAttention sam3.Sam3Attention
    sam3_lite_text.Sam3LiteTextAttention seamless_m4t.SeamlessM4TAttention
    seamless_m4t.SeamlessM4TConformerSelfAttention seamless_m4t_v2.SeamlessM4Tv2Attention
    seamless_m4t_v2.SeamlessM4Tv2ConformerSelfAttention segformer.SegformerAttention sew.SEWAttention
    siglip.SiglipAttention siglip2.Siglip2Attention smolvlm.SmolVLMVisionAttention
    speech_to_text.Speech2TextAttention speecht5.SpeechT5Attention swin.SwinAttention
    switch_transformers.SwitchTransformersAttention t5.T5Attention t5gemma.T5GemmaCrossAttention
    table_transformer.TableTransformerAttention tipsv2.Tipsv2TextAttention tipsv2.Tipsv2VisionAttention
    trocr.TrOCRAttention tvp.TvpAttention udop.UdopAttention umt5.UMT5Attention unispeech.UniSpeechAttention
    unispeech_sat.UniSpeechSatAttention unlimited_ocr.UnlimitedOcrAttention vit.ViTAttention
    vit_mae.ViTMAEAttention vit_msn.ViTMSNAttention vits.VitsAttention voxtral.VoxtralAttention
    wav2vec2.Wav2Vec2Attention wav2vec2_bert.Wav2Vec2BertSelfAttention
    wav2vec2_conformer.Wav2Vec2ConformerSelfAttention whisper.WhisperAttention x_clip.XCLIPAttention
    x_clip.XCLIPCrossAttention xglm.XGLMAttention xlm.MultiHeadAttention
    """),
    ("separate", "bias_gate", """
    wavlm.WavLMAttention
    """),
    ("separate", "clamped rope", """
    olmo.OlmoAttention olmoe.OlmoeAttention
    """),
    ("separate", "gate inner_norm rope", """
    muse_spark.MuseSparkTextAttention
    """),
    ("separate", "gate rope", """
    afmoe.AfmoeAttention beam.BeamAttention granite_swa.GraniteSWAAttention granitemoe_swa.GraniteMoeSWAAttention
    hrm_text.HrmTextAttention lfm3.Lfm3Attention muse_glimmer.MuseGlimmerTextAttention step3p7.Step3p7Attention
    """),
    ("separate", "inner_norm", """
    kosmos2.KosmosTextAttention
    """),
    ("separate", "inner_norm rope", """
    bitnet.BitNetAttention
    """),
    ("separate", "rope", """
    apertus.ApertusAttention apertus1p5.Apertus1p5TextAttention arcee.ArceeAttention aria.AriaTextAttention
    blt.BltSelfAttention
    cohere.CohereAttention cohere2.Cohere2Attention cohere2_moe.Cohere2MoeAttention
    cosmos3_edge.Cosmos3EdgeTextAttention csm.CsmAttention cwm.CwmAttention
    deepseek_ocr2.DeepseekOcr2VisionAttention dinov3_vit.DINOv3ViTAttention doge.DogeAttention
    dots3_note.Dots3NoteAudioAttention emu3.Emu3Attention eomt_dinov3.EomtDinov3Attention
    ernie4_5.Ernie4_5Attention ernie4_5_moe.Ernie4_5_MoeAttention eurobert.EuroBertAttention evolla.EvollaAttention
    exaone4.Exaone4Attention exaone_moe.ExaoneMoeAttention flex_olmo.FlexOlmoAttention flint.FlintAttention
    gemma.GemmaAttention gemma2.Gemma2Attention gemma3.Gemma3Attention glm.GlmAttention glm4.Glm4Attention
    glm4_moe.Glm4MoeAttention glm4v.Glm4vTextAttention glm4v_moe.Glm4vMoeTextAttention
    glm_image.GlmImageTextAttention glm_ocr.GlmOcrTextAttention glmasr.GlmAsrAttention gpt_oss.GptOssAttention
    gptj.GPTJAttention gradium_phonon_tts.GradiumPhononTTSAttention granite.GraniteAttention
    granite4_vision.Granite4VisionTextAttention granite_docling.GraniteDoclingTextAttention
    granitemoe.GraniteMoeAttention granitemoeshared.GraniteMoeSharedAttention gte.GteAttention
    helium.HeliumAttention higgs_audio_v2.HiggsAudioV2Attention hy_v3.HYV3Attention
    hyperclovax.HyperCLOVAXAttention idefics.IdeficsAttention inkling2.Inkling2VisionAttention jais2.Jais2Attention
    jina_embeddings_v3.JinaEmbeddingsV3Attention kimi_k25.Kimi_K25VisionAttention kolibri1.Kolibri1Attention
    lasr.LasrEncoderAttention lfm2.Lfm2Attention lfm3_vl.Lfm3VlVisionAttention llama.LlamaAttention
    llama4.Llama4TextAttention mellum.MellumAttention mimi.MimiAttention minimax.MiniMaxAttention
    minimax_m2.MiniMaxM2Attention minimax_m3_vl.MiniMaxM3VLAttention minimax_m3_vl.MiniMaxM3VLVisionAttention
    ministral3.Ministral3Attention mistral.MistralAttention mixtral.MixtralAttention mlcd.MLCDAttention
    mllama.MllamaTextSelfAttention modernbert_decoder.ModernBertDecoderAttention molmo2.Molmo2Attention
    moonshine.MoonshineAttention muse_glimmer.MuseGlimmerVisionAttention muse_spark.MuseSparkVisionAttention
    nanochat.NanoChatAttention nemotron3_5_transcribe.Nemotron3_5TranscribeAttention
    nemotron3_diarization.Nemotron3DiarizationAttention nomic_bert.NomicBertAttention
    olmo2.Olmo2Attention olmo3.Olmo3Attention olmo_hybrid.OlmoHybridAttention
    openai_privacy_filter.OpenAIPrivacyFilterAttention paddleocr_vl.PaddleOCRAttention
    paddleocr_vl.PaddleOCRVisionAttention pe_audio.PeAudioEncoderAttention phi.PhiAttention phimoe.PhimoeAttention
    pixtral.PixtralAttention pocket_tts.PocketTTSAttention
    pocket_tts_audio_tokenizer.PocketTTSAudioTokenizerAttention qwen2.Qwen2Attention
    qwen2_5_omni.Qwen2_5OmniAttention qwen2_5_omni.Qwen2_5OmniVisionAttention qwen2_5_vl.Qwen2_5_VLAttention
    qwen2_moe.Qwen2MoeAttention qwen2_vl.Qwen2VLAttention qwen3.Qwen3Attention qwen3_moe.Qwen3MoeAttention
    qwen3_omni_moe.Qwen3OmniMoeTalkerCodePredictorAttention qwen3_omni_moe.Qwen3OmniMoeThinkerTextAttention
    qwen3_vl.Qwen3VLTextAttention qwen3_vl_moe.Qwen3VLMoeTextAttention sam3.Sam3ViTRoPEAttention
    seed_oss.SeedOssAttention smollm3.SmolLM3Attention solar_open.SolarOpenAttention stablelm.StableLmAttention
    starcoder2.Starcoder2Attention t5gemma.T5GemmaSelfAttention t5gemma2.T5Gemma2SelfAttention
    timesfm2_5.TimesFm2_5Attention ultrabert.UltrabertAttention unlimited_ocr.UnlimitedOcrTextAttention
    vaultgemma.VaultGemmaAttention video_llama_3.VideoLlama3VisionAttention videoprism.VideoPrismAttention
    voxtral_realtime.VoxtralRealtimeAttention voxtral_realtime.VoxtralRealtimeTextAttention
    """),
    ("separate", "rope unscaled", """
    dia.DiaSelfAttention
    """),
    ("separate", "rope value_norm", """
    embedding_gemma2.EmbeddingGemma2Attention gemma4.Gemma4TextAttention gemma4_unified.Gemma4UnifiedTextAttention
    """),
    ("separate", "unscaled", """
    dia.DiaCrossAttention gpt_neo.GPTNeoSelfAttention timesfm.TimesFmAttention
    """),
    ("sibling", "", """
    align.AlignTextSelfAttention altclip.AltRobertaSelfAttention bert.BertCrossAttention bert.BertSelfAttention
    bert_generation.BertGenerationSelfAttention big_bird.BigBirdSelfAttention
    bigbird_pegasus.BigBirdPegasusSelfAttention blip.modeling_blip_text.BlipTextSelfAttention
    bridgetower.BridgeTowerCrossAttention bridgetower.BridgeTowerSelfAttention camembert.CamembertSelfAttention
    chinese_clip.ChineseCLIPTextSelfAttention clap.ClapTextSelfAttention
    data2vec.modeling_data2vec_text.Data2VecTextSelfAttention
    data2vec.modeling_data2vec_vision.Data2VecVisionSdpaSelfAttention deberta_v2.DisentangledSelfAttention
    donut.modeling_donut_swin.DonutSwinSelfAttention dpt.DPTSelfAttention electra.ElectraSelfAttention
    ernie.ErnieSelfAttention flava.FlavaSelfAttention git.GitSelfAttention glpn.GLPNEfficientSelfAttention
    instructblip.InstructBlipQFormerMultiHeadAttention instructblipvideo.InstructBlipVideoQFormerMultiHeadAttention
    layoutlm.LayoutLMSelfAttention luke.LukeSelfAttention markuplm.MarkupLMSelfAttention
    maskformer.modeling_maskformer_swin.MaskFormerSwinSelfAttention megatron_bert.MegatronBertSelfAttention
    mobilevit.MobileViTSelfAttention pvt.PvtEfficientSelfAttention rembert.RemBertSelfAttention
    roberta.RobertaSelfAttention roberta_prelayernorm.RobertaPreLayerNormSelfAttention
    roc_bert.RoCBertSelfAttention splinter.SplinterSelfAttention tapas.TapasSelfAttention
    videomae.VideoMAESelfAttention vilt.ViltSelfAttention visual_bert.VisualBertSelfAttention
    vitpose_backbone.VitPoseBackboneSelfAttention xlm_roberta.XLMRobertaSelfAttention
    xlm_roberta_xl.XLMRobertaXLSelfAttention yolos.YolosSelfAttention
    """),
    ("sibling", "qk_norm", """
    swinv2.Swinv2SelfAttention
    """),
    ("sibling", "rope", """
    roformer.RoFormerSelfAttention
    """),
    ("sibling", "unscaled", """
    sew_d.DisentangledSelfAttention
    """),
)

# (path of the attention in the block, norm before or after the attention, norm, LayerScale, block classes)
_BLOCKS = (
    ("self_attn", "config", "self_attn_layer_norm", None, "opt.OPTDecoderLayer"),
    ("attention", "post", None, None, """
    albert.AlbertLayer data2vec.modeling_data2vec_audio.Data2VecAudioEncoderLayer distilbert.TransformerBlock
    hubert.HubertEncoderLayer instructblip.InstructBlipQFormerAttention
    instructblipvideo.InstructBlipVideoQFormerAttention sew.SEWEncoderLayer speecht5.SpeechT5EncoderLayer
    unispeech.UniSpeechEncoderLayer unispeech_sat.UniSpeechSatEncoderLayer wav2vec2.Wav2Vec2EncoderLayer
    wavlm.WavLMEncoderLayer
    """),
    ("attn", "post", None, None, """
    groupvit.GroupViTCrossAttentionLayer mpnet.MPNetAttention openai.Block
    """),
    ("self", "post", None, None, """
    align.AlignTextAttention altclip.AltRobertaAttention bert.BertAttention bert_generation.BertGenerationAttention
    big_bird.BigBirdAttention blip.modeling_blip_text.BlipTextAttention bridgetower.BridgeTowerAttention
    camembert.CamembertAttention canine.CanineAttention chinese_clip.ChineseCLIPTextAttention
    clap.ClapTextAttention data2vec.modeling_data2vec_text.Data2VecTextAttention deberta_v2.DebertaV2Attention
    electra.ElectraAttention ernie.ErnieAttention git.GitAttention layoutlm.LayoutLMAttention luke.LukeAttention
    markuplm.MarkupLMAttention rembert.RemBertAttention roberta.RobertaAttention roc_bert.RoCBertAttention
    roformer.RoFormerAttention sew_d.SEWDAttention splinter.SplinterAttention tapas.TapasAttention
    visual_bert.VisualBertAttention xlm_roberta.XLMRobertaAttention
    """),
    ("self_attn", "post", None, None, """
    bart.BartDecoderLayer bart.BartEncoderLayer blenderbot_small.BlenderbotSmallDecoderLayer
    blenderbot_small.BlenderbotSmallEncoderLayer conditional_detr.ConditionalDetrEncoderLayer
    dab_detr.DabDetrEncoderLayer deformable_detr.DeformableDetrDecoderLayer detr.DetrDecoderLayer
    detr.DetrEncoderLayer gte.GteLayer jina_embeddings_v3.JinaEmbeddingsV3Layer led.LEDDecoderLayer
    marian.MarianDecoderLayer marian.MarianEncoderLayer mvp.MvpDecoderLayer mvp.MvpEncoderLayer
    nomic_bert.NomicBertLayer plbart.PLBartDecoderLayer plbart.PLBartEncoderLayer prophetnet.ProphetNetEncoderLayer
    rf_detr.RfDetrDecoderLayer trocr.TrOCRDecoderLayer
    """),
    ("self", "pre", "LayerNorm", None, """
    roberta_prelayernorm.RobertaPreLayerNormAttention
    """),
    ("self_attn", "pre", "attention_layernorm", None, """
    apertus.ApertusDecoderLayer apertus1p5.Apertus1p5TextDecoderLayer
    """),
    ("attn", "pre", "attn_norm", None, """
    modernbert.ModernBertEncoderLayer modernbert_decoder.ModernBertDecoderLayer
    """),
    ("attention", "pre", "input_layernorm", None, """
    gpt_neox.GPTNeoXLayer gpt_neox_japanese.GPTNeoXJapaneseLayer
    """),
    ("attn", "pre", "input_layernorm", None, """
    clvp.ClvpDecoderLayer
    """),
    ("self_attention", "pre", "input_layernorm", None, """
    bloom.BloomBlock falcon.FalconDecoderLayer
    """),
    ("self_attn", "pre", "input_layernorm", None, """
    arcee.ArceeDecoderLayer aria.AriaTextDecoderLayer bitnet.BitNetDecoderLayer blt.BltTransformerLayer
    canary.CanaryDecoderLayer cohere.CohereDecoderLayer cohere2.Cohere2DecoderLayer
    cohere2_moe.Cohere2MoeDecoderLayer cosmos3_edge.Cosmos3EdgeTextDecoderLayer csm.CsmDecoderLayer
    cwm.CwmDecoderLayer doge.DogeDecoderLayer emu3.Emu3DecoderLayer ernie4_5.Ernie4_5DecoderLayer
    ernie4_5_moe.Ernie4_5_MoeDecoderLayer eurobert.EuroBertDecoderLayer evolla.EvollaDecoderLayer
    exaone_moe.ExaoneMoeDecoderLayer flint.FlintDecoderLayer gemma.GemmaDecoderLayer glm.GlmDecoderLayer
    glm4_moe.Glm4MoeDecoderLayer glmasr.GlmAsrEncoderLayer gpt_oss.GptOssDecoderLayer
    gradium_phonon_tts.GradiumPhononTTSDecoderLayer granite.GraniteDecoderLayer
    granite4_vision.Granite4VisionTextDecoderLayer granite_swa.GraniteSWADecoderLayer
    granitemoe.GraniteMoeDecoderLayer granitemoe_swa.GraniteMoeSWADecoderLayer
    granitemoeshared.GraniteMoeSharedDecoderLayer helium.HeliumDecoderLayer higgs_audio_v2.HiggsAudioV2DecoderLayer
    hy_v3.HYV3DecoderLayer jais2.Jais2DecoderLayer llama.LlamaDecoderLayer llama4.Llama4TextDecoderLayer
    mellum.MellumDecoderLayer minimax_m2.MiniMaxM2DecoderLayer minimax_m3_vl.MiniMaxM3VLDecoderLayer
    ministral3.Ministral3DecoderLayer mistral.MistralDecoderLayer mixtral.MixtralDecoderLayer
    mllama.MllamaSelfAttentionDecoderLayer molmo2.Molmo2DecoderLayer moonshine.MoonshineDecoderLayer
    moonshine.MoonshineEncoderLayer olmoe.OlmoeDecoderLayer openai_privacy_filter.OpenAIPrivacyFilterEncoderLayer
    persimmon.PersimmonDecoderLayer phi.PhiDecoderLayer phi3.Phi3DecoderLayer
    phi4_multimodal.Phi4MultimodalDecoderLayer phimoe.PhimoeDecoderLayer pocket_tts.PocketTTSDecoderLayer
    qwen2.Qwen2DecoderLayer qwen2_moe.Qwen2MoeDecoderLayer qwen3.Qwen3DecoderLayer qwen3_moe.Qwen3MoeDecoderLayer
    qwen3_omni_moe.Qwen3OmniMoeTalkerCodePredictorDecoderLayer qwen3_omni_moe.Qwen3OmniMoeThinkerTextDecoderLayer
    qwen3_vl.Qwen3VLTextDecoderLayer qwen3_vl_moe.Qwen3VLMoeTextDecoderLayer seed_oss.SeedOssDecoderLayer
    smollm3.SmolLM3DecoderLayer solar_open.SolarOpenDecoderLayer stablelm.StableLmDecoderLayer
    starcoder2.Starcoder2DecoderLayer ultrabert.UltrabertDecoderLayer unlimited_ocr.UnlimitedOcrTextDecoderLayer
    vaultgemma.VaultGemmaDecoderLayer
    """),
    ("SelfAttention", "pre", "layer_norm", None, """
    longt5.LongT5LayerSelfAttention mt5.MT5LayerSelfAttention
    switch_transformers.SwitchTransformersLayerSelfAttention t5.T5LayerSelfAttention udop.UdopLayerSelfAttention
    umt5.UMT5LayerSelfAttention
    """),
    ("attention", "pre", "layer_norm", None, """
    omniasr.OmniASREncoderLayer pix2struct.Pix2StructTextLayerSelfAttention
    """),
    ("attention", "pre", "layer_norm1", None, """
    sam3.Sam3ViTLayer
    """),
    ("attn", "pre", "layer_norm1", None, """
    deepseek_ocr2.DeepseekOcr2SamVisionLayer got_ocr2.GotOcr2VisionLayer pp_formulanet.PPFormulaNetVisionLayer
    sam.SamVisionLayer sam_hq.SamHQVisionLayer slanext.SLANeXtVisionLayer
    """),
    ("self_attn", "pre", "layer_norm1", None, """
    altclip.AltCLIPEncoderLayer blip.BlipEncoderLayer blip_2.Blip2EncoderLayer chinese_clip.ChineseCLIPVisionLayer
    clip.CLIPEncoderLayer clipseg.CLIPSegEncoderLayer git.GitVisionEncoderLayer
    granite_docling.GraniteDoclingEncoderLayer groupvit.GroupViTEncoderLayer idefics2.Idefics2EncoderLayer
    idefics3.Idefics3EncoderLayer instructblip.InstructBlipEncoderLayer
    instructblipvideo.InstructBlipVideoEncoderLayer janus.JanusVisionEncoderLayer kosmos2.Kosmos2VisionEncoderLayer
    metaclip_2.MetaClip2EncoderLayer mlcd.MLCDEncoderLayer
    nemotron3_5_transcribe.Nemotron3_5TranscribeAsrAudioLayer nemotron3_diarization.Nemotron3DiarizationAudioLayer
    owlv2.Owlv2EncoderLayer owlvit.OwlViTEncoderLayer phi4_multimodal.Phi4MultimodalVisionEncoderLayer
    siglip.SiglipEncoderLayer siglip2.Siglip2EncoderLayer smolvlm.SmolVLMEncoderLayer tipsv2.Tipsv2TextEncoderLayer
    x_clip.XCLIPEncoderLayer
    """),
    ("attention", "pre", "layer_norm_1", None, """
    glpn.GLPNLayer pvt.PvtLayer pvt_v2.PvtV2BlockLayer
    """),
    ("multi_head_attention", "pre", "layernorm1", None, """
    ctrl.EncoderLayer
    """),
    ("attn", "pre", "layernorm_1", None, """
    bark.BarkBlock
    """),
    ("attention", "pre", "layernorm_before", "gamma_1", """
    lw_detr.LwDetrViTLayer
    """),
    ("attention", "pre", "layernorm_before", "lambda_1", """
    beit.BeitLayer data2vec.modeling_data2vec_vision.Data2VecVisionLayer internvl.InternVLVisionLayer
    qianfan_ocr.QianfanOCRVisionLayer
    """),
    ("attention", "pre", "layernorm_before", None, """
    audio_spectrogram_transformer.ASTLayer deit.DeiTLayer donut.modeling_donut_swin.DonutSwinLayer dpt.DPTViTLayer
    flava.FlavaLayer ijepa.IJepaLayer maskformer.modeling_maskformer_swin.MaskFormerSwinLayer
    mobilevit.MobileViTTransformerLayer pixio.PixioLayer segformer.SegformerLayer swin.SwinLayer
    videomae.VideoMAELayer videoprism.VideoPrismLayer vilt.ViltLayer vit.ViTLayer vit_mae.ViTMAELayer
    vit_msn.ViTMSNLayer vitpose_backbone.VitPoseBackboneLayer yolos.YolosLayer
    """),
    ("attn", "pre", "layernorm_before", None, """
    hiera.HieraLayer
    """),
    ("self_attention", "pre", "layernorm_before_attention", None, """
    cpmant.CpmAntSelfAttentionBlock
    """),
    ("self", "pre", "ln", None, """
    megatron_bert.MegatronBertAttention
    """),
    ("attn", "pre", "ln_1", None, """
    decision_transformer.DecisionTransformerGPT2Block gpt2.GPT2Block gpt_bigcode.GPTBigCodeBlock
    gpt_neo.GPTNeoBlock gptj.GPTJBlock imagegpt.ImageGPTBlock
    """),
    ("mixer", "pre", "norm", None, """
    nemotron_h.NemotronHBlock
    """),
    ("attention", "pre", "norm1", "layer_scale1", """
    dinov2.Dinov2Layer dinov2_with_registers.Dinov2WithRegistersLayer dinov3_vit.DINOv3ViTLayer eomt.EomtLayer
    eomt_dinov3.EomtDinov3Layer radio.RadioLayer rf_detr.RfDetrDinov2Layer tipsv2.Tipsv2VisionLayer
    """),
    ("attention", "pre", "norm1", None, """
    vitdet.VitDetLayer
    """),
    ("attn", "pre", "norm_1", None, """
    mpt.MptBlock
    """),
    ("self_attn", "pre", "operator_norm", None, """
    lfm2.Lfm2DecoderLayer
    """),
    ("self_attention", "pre", "pre_sa_norm", None, """
    dia.DiaEncoderLayer
    """),
    ("attention", "pre", "rms_norm1", None, """
    aimv2.Aimv2EncoderLayer ovis2.Ovis2VisionEncoderLayer
    """),
    ("self", "pre", "self_attn_layer_norm", None, """
    xlm_roberta_xl.XLMRobertaXLAttention
    """),
    ("self_attn", "pre", "self_attn_layer_norm", None, """
    bigbird_pegasus.BigBirdPegasusDecoderLayer bigbird_pegasus.BigBirdPegasusEncoderLayer biogpt.BioGptDecoderLayer
    blenderbot.BlenderbotDecoderLayer blenderbot.BlenderbotEncoderLayer kosmos2.Kosmos2TextBlock
    kosmos2_5.Kosmos2_5TextBlock m2m_100.M2M100DecoderLayer m2m_100.M2M100EncoderLayer mbart.MBartDecoderLayer
    mbart.MBartEncoderLayer moss_transcribe_diarize.MossTranscribeDiarizeAudioLayer musicgen.MusicgenDecoderLayer
    musicgen_melody.MusicgenMelodyDecoderLayer nllb_moe.NllbMoeDecoderLayer nllb_moe.NllbMoeEncoderLayer
    pegasus.PegasusDecoderLayer pegasus.PegasusEncoderLayer pegasus_x.PegasusXDecoderLayer
    pp_formulanet.PPFormulaNetDecoderLayer qwen2_audio.Qwen2AudioEncoderLayer seamless_m4t.SeamlessM4TDecoderLayer
    seamless_m4t.SeamlessM4TEncoderLayer seamless_m4t_v2.SeamlessM4Tv2DecoderLayer
    seamless_m4t_v2.SeamlessM4Tv2EncoderLayer speech_to_text.Speech2TextDecoderLayer
    speech_to_text.Speech2TextEncoderLayer table_transformer.TableTransformerDecoderLayer
    table_transformer.TableTransformerEncoderLayer voxtral.VoxtralEncoderLayer
    voxtral_realtime.VoxtralRealtimeEncoderLayer whisper.WhisperDecoderLayer whisper.WhisperEncoderLayer
    xglm.XGLMDecoderLayer
    """),
    ("self_attn", "pre", None, None, """
    nanochat.NanoChatDecoderLayer olmo.OlmoDecoderLayer
    """),
)
# "class:path" -> (order, norm, LayerScale)
BLOCKS = {f"{block}:{path}": rest for path, *rest, names in _BLOCKS for block in names.split()}

# Blocks with a norm between proj and the residual stream
SANDWICH_BLOCKS = set("""
    afmoe.AfmoeDecoderLayer embedding_gemma2.EmbeddingGemma2EncoderLayer exaone4.Exaone4DecoderLayer
    flex_olmo.FlexOlmoDecoderLayer gemma2.Gemma2DecoderLayer gemma3.Gemma3DecoderLayer
    gemma4.Gemma4TextDecoderLayer gemma4_unified.Gemma4UnifiedTextDecoderLayer glm4.Glm4DecoderLayer
    hyperclovax.HyperCLOVAXDecoderLayer kolibri1.Kolibri1DecoderLayer lfm3.Lfm3DecoderLayer
    muse_glimmer.MuseGlimmerTextDecoderLayer olmo2.Olmo2DecoderLayer olmo3.Olmo3DecoderLayer
    olmo_hybrid.OlmoHybridAttentionDecoderLayer t5gemma.T5GemmaDecoderLayer t5gemma.T5GemmaEncoderLayer
    t5gemma2.T5Gemma2EncoderLayer
""".split())

# Norms whose gain is 1 + weight
ONE_PLUS_GAIN = set("""
    gemma.GemmaRMSNorm minimax_m3_vl.MiniMaxM3VLRMSNorm vaultgemma.VaultGemmaRMSNorm videoprism.VideoPrismLayerNorm
""".split())
# fmt: on

# Attention pooling: a learned query, so no self-attention
POOLING = ("aimv2.Aimv2AttentionPoolingHead", "videoprism.VideoPrismMultiheadAttentionPoolingHead")

# Queries and keys are made from tokens that were pooled, each in its own way
POOLED = ("efficientloftr.EfficientLoFTRAttention",)
